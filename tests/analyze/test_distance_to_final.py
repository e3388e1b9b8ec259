"""The way to the final state against slow twins."""

import numpy as np
import pytest
import torch

from trainhooks.analyze.distance_to_final import FinalRows, groups_to_final, head_to_final, unit_distance

VOCAB, DIM = 40, 6
COUNTS = torch.tensor([0, 1, 5, 9, 10, 30, 99, 100] * 5)


@pytest.fixture
def heads():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(VOCAB, DIM, generator=generator) + 3 for _ in range(2)]


def slow(head, final):
    keep = COUNTS.numpy() > 0
    x, y = (matrix.double().numpy()[keep] for matrix in (head, final))
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    bins = np.floor(np.log10(COUNTS.numpy()[keep])).astype(int)
    picked = [bins == b for b in range(3)]
    row_cosines = (x * y).sum(axis=1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    return {
        "convergence.head_distance_to_final": np.linalg.norm(x - y) / np.linalg.norm(y),
        "convergence.head_unit_distance_to_final": np.linalg.norm(x / np.linalg.norm(x) - y / np.linalg.norm(y)),
        "convergence.head_cosine_to_final": (x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y),
        "convergence.head_distance_to_final_by_bin": [
            np.linalg.norm((x - y)[p]) / np.linalg.norm(y[p]) for p in picked
        ],
        "convergence.head_cosine_to_final_by_bin": [row_cosines[p].mean() for p in picked],
        "convergence.head_row_norm_by_bin": [np.linalg.norm(x[p], axis=1).mean() for p in picked],
    }


def test_against_a_slow_twin(heads):
    rows = FinalRows.of(COUNTS)
    found = head_to_final(*heads, rows)
    assert list(found) == [variable.name for variable in rows.variables]
    for name, value in slow(*heads).items():
        np.testing.assert_allclose(found[name].numpy(), value, rtol=1e-5, err_msg=name)


def test_one_vector_added_to_every_row_changes_nothing(heads):
    head, final = heads
    rows = FinalRows.of(COUNTS)
    moved = head_to_final(head + 5, final - 2, rows)
    for name, value in head_to_final(head, final, rows).items():
        torch.testing.assert_close(moved[name], value, rtol=1e-4, atol=1e-5)


def test_the_final_state_itself(heads):
    found = head_to_final(heads[0], heads[0], FinalRows.of(COUNTS))
    assert float(found["convergence.head_distance_to_final"]) == 0
    assert float(found["convergence.head_unit_distance_to_final"]) == 0
    assert float(found["convergence.head_cosine_to_final"]) == pytest.approx(1)


def test_degenerate(heads):
    empty_bin = FinalRows.of(torch.where(COUNTS >= 10, COUNTS * 100, COUNTS))
    assert empty_bin.bin_count == 5
    by_bin = head_to_final(*heads, empty_bin)["convergence.head_distance_to_final_by_bin"]
    assert by_bin.isnan().tolist() == [False, True, True, False, False]
    zero = head_to_final(heads[0], torch.zeros(VOCAB, DIM), FinalRows.of(None))
    assert all(value.isnan() for value in zero.values())
    assert len(zero) == 3


def test_groups():
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(2, 1000, generator=generator, dtype=torch.float64)
    squares = [torch.stack([v.square().sum(), torch.zeros((), dtype=torch.float64)]) for v in (x, y, x - y)]
    found = groups_to_final(squares[0], squares[1], apart=squares[2])
    wanted = [(x - y).norm() / y.norm(), (x / x.norm() - y / y.norm()).norm(), (x @ y) / x.norm() / y.norm()]
    for value, exact in zip(found.values(), wanted, strict=True):
        assert float(value[0]) == pytest.approx(float(exact), rel=1e-12)
        assert value[1].isnan()


def test_unit_distance_keeps_small_angles():
    x = torch.tensor([1.0, 0.0], dtype=torch.float64)
    y = torch.tensor([2.0, 2e-7], dtype=torch.float64)
    found = unit_distance(x.norm(), y.norm(), distance=(x - y).norm())
    assert float(found) == pytest.approx(1e-7, rel=0.1)
