from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_probe import planted

from trainhooks.probe import probe_sums


def assert_same(a, b, *, tolerance=1e-10):
    for name in ("weight", "rows", "mean_x", "mean_y", "gram", "moment", "square"):
        x, y = getattr(a, name), getattr(b, name)
        assert torch.allclose(x, y, rtol=tolerance, atol=tolerance * float(y.abs().max() + 1)), name


def twin(embedding, y, keep, weights=None):
    x, y = embedding[keep].numpy(), y[keep].numpy()
    w = np.ones(len(y)) if weights is None else weights[keep].numpy()
    mean_x, mean_y = np.average(x, axis=0, weights=w), np.average(y, axis=0, weights=w)
    x, y = x - mean_x, y - mean_y
    return {
        "weight": w.sum(),
        "mean_x": mean_x,
        "mean_y": mean_y[None],
        "gram": (x * w[:, None]).T @ x,
        "moment": ((x * w[:, None]).T @ y)[:, None],
        "square": np.array([(w * y * y).sum()]),
    }


@pytest.mark.parametrize("weighted", [False, True])
def test_agree_with_explicit_sums(weighted):
    embedding, y, _ = planted(173)
    weights = torch.rand(173, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) if weighted else None
    sums = probe_sums(embedding + 1000, y, weights=weights)
    ids = torch.arange(173)
    for fold in range(5):
        for ours, keep in ((sums.fold(fold), ids % 5 == fold), (sums.without(fold), ids % 5 != fold)):
            for name, expected in twin(embedding + 1000, y, keep, weights).items():
                np.testing.assert_allclose(getattr(ours, name).numpy(), expected, rtol=1e-9, atol=1e-9, err_msg=name)
    for name, expected in twin(embedding + 1000, y, ids >= 0, weights).items():
        np.testing.assert_allclose(getattr(sums.total(), name).numpy(), expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=25)
@given(st.lists(st.integers(1, 199), min_size=1, max_size=4, unique=True))
def test_sums_of_shards_add_to_the_sums_of_all(cuts):
    embedding, y, _ = planted(200, 6)
    bounds = [0, *sorted(cuts), 200]
    parts = [probe_sums(embedding[a:b], y[a:b], first_id=a) for a, b in pairwise(bounds)]
    merged = sum(parts[1:], start=parts[0])
    assert_same(merged, probe_sums(embedding, y))


def test_addition_is_commutative_and_associative():
    embedding, y, _ = planted(90, 4)
    a, b, c = (probe_sums(embedding[i::3], y[i::3]) for i in range(3))
    assert_same(a + b, b + a)
    assert_same((a + b) + c, a + (b + c))


def test_empty_folds_add_nothing():
    embedding, y, _ = planted(2, 3)
    sums = probe_sums(embedding, y)
    assert sums.rows.tolist() == [1, 1, 0, 0, 0]
    assert sums.gram.abs().max() < 1e-12
    assert sums.total().mean_y.tolist() == pytest.approx([float(y.mean())])
    assert sums.without(0).rows == 1
    assert all(torch.isfinite(v).all() for v in vars(sums).values() if isinstance(v, torch.Tensor))


def test_nothing_left_to_train_on():
    embedding, y, _ = planted(1, 3)
    left = probe_sums(embedding, y, weights=torch.tensor([0.1])).without(0)
    assert left.rows == 0
    assert left.weight == 0
    assert torch.isfinite(left.mean_x).all()


def test_other_shapes_are_refused():
    embedding, y, _ = planted(40, 4)
    with pytest.raises(ValueError, match="cannot add"):
        probe_sums(embedding, y) + probe_sums(embedding[:, :3], y)


def test_float32_products_keep_four_digits_with_a_long_mean_row():
    embedding, y, _ = planted(5000, 8)
    embedding = (embedding + 300).float()
    exact, rounded = probe_sums(embedding, y), probe_sums(embedding, y, dtype=torch.float32)
    assert_same(rounded, exact, tolerance=1e-6)
