import numpy as np
import pytest
import torch
from naive_probe import planted

from trainhooks.probe import fit_probe, slope_cosine, transfer_r2


def test_slope_cosine():
    a = torch.tensor([[3.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    b = torch.tensor([[2.0, 0.0], [-1.0, -1.0], [1.0, 0.0]])
    found = slope_cosine(a, b)
    assert found[:2].tolist() == pytest.approx([1, -1])
    assert found[2].isnan()
    assert float(slope_cosine(a[0], a[1])) == pytest.approx(2**-0.5)


def test_transfer_to_the_same_step_is_the_held_out_r2():
    embedding, y, _ = planted(noise=2.0)
    fit = fit_probe(embedding, y)
    assert float(transfer_r2(fit, embedding, y)) == pytest.approx(float(fit.heldout_r2), abs=1e-10)
    two = torch.stack([y, y**2], 1)
    fits = fit_probe(embedding, two)
    np.testing.assert_allclose(transfer_r2(fits, embedding, two), fits.heldout_r2, atol=1e-10)


def test_transfer_against_explicit_predictions():
    embedding, y, _ = planted(noise=2.0)
    other = embedding * 1.3 + torch.randn(600, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    mask = torch.arange(600) % 4 > 0
    fit = fit_probe(embedding, y, mask=mask)
    error = spread = 0.0
    for fold in range(5):
        held, train = mask & (torch.arange(600) % 5 == fold), mask & (torch.arange(600) % 5 != fold)
        predicted = y[train].mean() + (other[held] - other[train].mean(0)) @ fit.fold_slope[fold]
        error += float((y[held] - predicted).square().sum())
        spread += float((y[held] - y[train].mean()).square().sum())
    assert float(transfer_r2(fit, other, y, mask=mask)) == pytest.approx(1 - error / spread, abs=1e-10)


def test_a_shift_of_all_rows_changes_no_transfer():
    embedding, y, _ = planted(noise=2.0)
    fit = fit_probe(embedding, y)
    assert float(transfer_r2(fit, embedding + 40, y)) == pytest.approx(float(fit.heldout_r2), abs=1e-8)


def test_transfer_to_an_unrelated_embedding_is_no_better_than_the_mean():
    embedding, y, _ = planted()
    other, _, _ = planted(seed=9)
    assert float(transfer_r2(fit_probe(embedding, y), other, y)) < 0


def test_other_widths_and_constant_targets():
    embedding, y, _ = planted()
    fit = fit_probe(embedding, y)
    with pytest.raises(ValueError, match="the slope has 12 dimensions; the output embedding has 11"):
        transfer_r2(fit, embedding[:, :11], y)
    assert transfer_r2(fit, embedding, torch.ones(600)).isnan()


def test_other_numbers_of_targets_are_refused():
    embedding, y, _ = planted(60, 4)
    with pytest.raises(ValueError, match="2 targets and y has 1"):
        transfer_r2(fit_probe(embedding, torch.stack([y, -y], 1)), embedding, y)
