"""Figures from moments by fold are those of the rows themselves, in float64."""

import numpy as np
import pytest
import torch
from naive_probe import planted

from trainhooks.probe.fit import build_rows
from trainhooks.probe.fold_moments import FoldMoments
from trainhooks.probe.rows import sum_rows
from trainhooks.probe.scored import score
from trainhooks.probe.solve import solve_moments


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("weighted", [False, True])
def test_squares_and_correlations_are_those_of_numpy(weighted):
    columns, keep = draw(3, 4, 50) + 5, torch.rand(3, 1, 50, generator=torch.Generator().manual_seed(1)) < 0.8
    weights = keep * (draw(3, 4, 50, seed=2).exp() if weighted else torch.ones(1, dtype=torch.float64))
    found = FoldMoments.of(columns.clone(), weights=weights)
    about = draw(3, 2, seed=3)
    square, pearson = found.square(slice(0, 2), about=about), found.pearson(slice(0, 2), slice(2, 4))
    for fold in range(3):
        for column in range(2):
            w = weights[fold, column if weighted else 0].numpy()
            x, y = columns[fold, column].numpy(), columns[fold, column + 2].numpy()
            assert float(square[fold, column]) == pytest.approx((w * (x - float(about[fold, column])) ** 2).sum())
            if not weighted:
                assert float(pearson[fold, column]) == pytest.approx(np.corrcoef(x[w > 0], y[w > 0])[0, 1])


def test_a_constant_column_correlates_with_nothing():
    columns = torch.stack([draw(1, 20), torch.full((1, 20), 0.1, dtype=torch.float64)], 1)
    found = FoldMoments.of(columns, weights=torch.ones(1, 1, 20, dtype=torch.float64))
    assert found.pearson(slice(0, 1), slice(1, 2)).isnan().all()


@pytest.mark.parametrize("weighted", [False, True])
def test_moments_of_products_are_those_of_sums_that_add(weighted):
    embedding, y, _ = planted(173)
    weights = draw(173).exp() if weighted else None
    targets = torch.stack([y, y.flip(0)], 1)
    rows = build_rows(embedding, targets, mask=torch.arange(173) % 9 != 2, weights=weights, folds=5)
    first = sum_rows(embedding + 100, rows, dtype=torch.float64)
    found, twin = first.moments, first.sums.total_and_without_each()
    for name in ("weight", "rows", "mean_x", "mean_y", "gram", "moment", "square", "noise"):
        a, b = getattr(found, name), getattr(twin, name)
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * float(b.abs().max()), msg=name)


def test_a_perfect_fit_has_no_negative_error():
    embedding = draw(120, 7)
    y = embedding @ draw(7, 1, seed=1)
    rows = build_rows(embedding, y, mask=None, weights=None, folds=5)
    first = sum_rows(embedding, rows, dtype=torch.float64)
    fit = score(embedding, rows, first=first, found=solve_moments(first.moments, exact=False)).fit
    assert 0 <= float(fit.heldout_mse) < 1e-24
    assert float(fit.heldout_r2) <= 1
