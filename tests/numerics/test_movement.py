"""Row pairs that are degenerate; what they measure is held to slow twins in test_geometry.py."""

import pytest
import torch

from trainhooks.numerics.movement import compare


@pytest.fixture
def matrix():
    return torch.randn(50, 7, generator=torch.Generator().manual_seed(0))


def pair(current, reference):
    # given means keep rows of 0 at 0
    means = [torch.zeros(7), torch.zeros(7)]
    return compare(current, [reference], ids=None, means=means).pairs[0]


def test_a_cosine_to_zero_is_nan_whatever_the_rounding(matrix):
    zero = torch.zeros(50, 7)
    for found in (pair(matrix, zero), pair(zero, matrix), pair(zero, zero)):
        assert found.movement().cosine.isnan()
        assert found.cosines().isnan().all()


def test_a_zero_row_is_nan_and_the_others_are_not(matrix):
    reference = matrix.clone()
    reference[3] = 0
    cosines = pair(matrix, reference).cosines()
    assert cosines.isnan().nonzero().flatten().tolist() == [3]
    kept = torch.arange(50) != 3
    torch.testing.assert_close(cosines[kept], torch.ones(49, dtype=torch.float64))


def test_nan_stays_nan(matrix):
    other = matrix.clone()
    other[5, 2] = float("nan")
    found = pair(matrix, other)
    assert found.movement().cosine.isnan()
    assert found.cosines().isnan().nonzero().flatten().tolist() == [5]
