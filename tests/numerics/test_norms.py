import math

import pytest
import torch
from naive_metrics import draw

from trainhooks.numerics.norms import all_finite, group_norms, squared_norms
from trainhooks.numerics.segments import gathered_sums


def test_norms_match_float64_where_one_float32_sum_does_not():
    values = 0.02 * draw(8_000_000, dtype=torch.float32)
    truth = float(values.double().norm())
    assert math.sqrt(float(squared_norms([values])[0])) == pytest.approx(truth, rel=1e-6)
    assert float(torch.linalg.vector_norm(values)) != pytest.approx(truth, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_precisions(dtype):
    tensors = [draw(300, 41).to(dtype), draw(7, seed=1).to(dtype)]
    expected = torch.stack([t.double().square().sum() for t in tensors])
    torch.testing.assert_close(squared_norms(tensors), expected, rtol=1e-6, atol=0)


def test_mixed_precisions_keep_their_order():
    tensors = [torch.full((4,), 2.0, dtype=d) for d in (torch.float32, torch.bfloat16, torch.float64, torch.float32)]
    tensors = [t * (i + 1) for i, t in enumerate(tensors)]
    torch.testing.assert_close(squared_norms(tensors).sqrt(), torch.tensor([4.0, 8, 12, 16], dtype=torch.float64))


def test_groups_known_answer_and_shared_tensors():
    three, four = torch.tensor([3.0]), torch.tensor([[0.0, 4.0]])
    groups = {"whole": [three, four], "a": [three], "b": [four], "twice": [three, three], "none": []}
    assert group_norms(groups).tolist() == [5.0, 3.0, 4.0, 3.0, 0.0]


def test_group_of_zeros_empty_tensor_and_nan():
    groups = {"zero": [torch.zeros(5)], "empty": [torch.zeros(0)], "nan": [torch.tensor([1.0, float("nan")])]}
    norms = group_norms(groups)
    assert norms[:2].tolist() == [0.0, 0.0]
    assert norms[2].isnan()


def test_nothing():
    assert squared_norms([]).shape == (0,)
    assert group_norms({}).shape == (0,)
    assert gathered_sums(torch.zeros(0), [[]]).tolist() == [0.0]


def test_rotation_and_scale():
    matrix = draw(50, 20)
    turned = matrix @ torch.linalg.qr(draw(20, 20, seed=1))[0]
    torch.testing.assert_close(squared_norms([turned]), squared_norms([matrix]))
    torch.testing.assert_close(squared_norms([3 * matrix]), 9 * squared_norms([matrix]))


def test_parameters_keep_no_graph():
    parameter = torch.nn.Parameter(torch.ones(3))
    assert not group_norms({"whole": [parameter]}).requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64], ids=str)
def test_whether_all_is_finite(dtype, monkeypatch):
    monkeypatch.setattr("trainhooks.numerics.norms._PART", 8)
    values = torch.zeros(5, 7, dtype=dtype)
    assert all_finite(values)
    assert all_finite(values[:0])
    if not dtype.is_floating_point:
        return
    values[2] = torch.finfo(dtype).max
    assert all_finite(values), "a sum that overflows says nothing"
    for bad in ("nan", "inf", "-inf"):
        values[4, 6] = float(bad)
        assert not all_finite(values)
        assert not all_finite(values.T)
