"""Sums over runs of rows: the same one by one and in one operation."""

import math

import pytest
import torch

from trainhooks.numerics.segments import gathered_sums, segment_sums


@pytest.fixture(params=["one by one", "together"], autouse=True)
def way(request, monkeypatch):
    if request.param == "together":
        monkeypatch.setattr("trainhooks.numerics.segments.ONE_BY_ONE", ())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_segments(dtype):
    values = torch.arange(12, dtype=dtype).view(6, 2)
    sums = segment_sums(values, (2, 0, 3, 1))
    assert sums.dtype == dtype
    assert sums.tolist() == [[2, 4], [0, 0], [18, 21], [10, 11]]
    assert segment_sums(values[:, 0], (1, 5)).tolist() == [0, 30]
    assert segment_sums(values[:2, 0], (1, 1)).tolist() == [0, 2]


def test_nothing():
    assert segment_sums(torch.zeros(0, 3), ()).shape == (0, 3)
    assert gathered_sums(torch.zeros(0, 3), [[], []]).tolist() == [[0, 0, 0]] * 2
    assert gathered_sums(torch.zeros(0), []).shape == (0,)


def test_groups_share_rows():
    values = torch.tensor([1.0, 10, 100])
    assert gathered_sums(values, [[0, 2], [], [2, 1, 0], [1]]).tolist() == [101, 0, 111, 10]


def test_what_is_not_finite_stays_in_its_segment():
    values = torch.tensor([1.0, math.nan, 2, math.inf, 3])
    sums = segment_sums(values, (1, 1, 1, 2))
    assert sums[[0, 2]].tolist() == [1, 2]
    assert math.isnan(sums[1])
    assert math.isinf(sums[3])


def test_kept_numbers_are_usable_after_inference_mode():
    values = torch.ones(5, requires_grad=True)
    with torch.inference_mode():
        gathered_sums(values, [[4, 3], [2]])
    gathered_sums(values, [[4, 3], [2]]).sum().backward()
    assert values.grad.tolist() == [0, 0, 1, 1, 1]
