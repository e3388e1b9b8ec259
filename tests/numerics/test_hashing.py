import torch

from trainhooks.probe import permutation, splitmix64

WORD = 2**64


def splitmix64_twin(value: int) -> int:
    z = (value + 0x9E3779B97F4A7C15) % WORD
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
    return z ^ (z >> 31)


def test_agrees_with_python_integers():
    ids = [0, 1, 2, 41, 50303, 2**31, 2**62 + 12345]
    hashes = splitmix64(torch.tensor(ids))
    assert [h % WORD for h in hashes.tolist()] == [splitmix64_twin(i) for i in ids]


def test_published_value():
    assert int(splitmix64(torch.tensor([0]))[0]) % WORD == 0xE220A8397B1DCDAF


def test_permutation_is_the_unsigned_order_of_the_hashes():
    ids = torch.arange(3, 2000, 7)
    expected = sorted(range(len(ids)), key=lambda i: splitmix64_twin(int(ids[i])))
    assert permutation(ids).tolist() == expected


def test_permutation_depends_on_the_ids_alone_and_leaves_few_in_place():
    ids = torch.arange(5000)
    order = permutation(ids)
    assert torch.equal(order, permutation(ids.clone()))
    assert torch.equal(order.sort().values, ids)
    assert (order == ids).sum() < 10


def test_empty():
    assert permutation(torch.arange(0)).tolist() == []
