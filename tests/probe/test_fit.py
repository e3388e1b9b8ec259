import numpy as np
import pytest
import scipy.stats
import statsmodels.api as sm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_probe import by_fold, heldout_r2, planted, refit

from trainhooks.probe import ProbeFit, fit_probe, probe_sums, shrunk_weights, solve_sums, sqrt_weights

FIGURES = ("r2", "adjusted_r2", "heldout_r2", "heldout_mse", "heldout_pearson", "heldout_spearman")


def figures(fit: ProbeFit) -> np.ndarray:
    return np.array([float(getattr(fit, name)) for name in FIGURES])


def test_agrees_with_statsmodels():
    embedding, y, _ = planted()
    fit, twin = fit_probe(embedding, y), sm.OLS(y.numpy(), sm.add_constant(embedding.numpy())).fit()
    assert float(fit.r2) == pytest.approx(twin.rsquared, abs=1e-8)
    assert float(fit.adjusted_r2) == pytest.approx(twin.rsquared_adj, abs=1e-8)
    assert float(fit.intercept) == pytest.approx(twin.params[0], abs=1e-8)
    np.testing.assert_allclose(fit.slope.numpy(), twin.params[1:], atol=1e-8)
    assert float(fit.null_r2) == pytest.approx(12 / 599)
    assert float(fit.variance) == pytest.approx(float(y.var(correction=0)))
    assert (float(fit.rank), float(fit.rows)) == (12, 600)


@pytest.mark.parametrize("folds", [2, 5, 7])
def test_held_out_figures_agree_with_explicit_refits(folds):
    embedding, y, _ = planted(noise=2.0)
    fit = fit_probe(embedding, y, folds=folds)
    predicted, means = refit(embedding, y, folds=folds)
    assert float(fit.heldout_r2) == pytest.approx(heldout_r2(y, predicted, means), abs=1e-8)
    assert float(fit.heldout_mse) == pytest.approx(((y.numpy() - predicted) ** 2).mean(), abs=1e-8)
    for name, function in (("heldout_pearson", scipy.stats.pearsonr), ("heldout_spearman", scipy.stats.spearmanr)):
        assert float(getattr(fit, name)) == pytest.approx(by_fold(function, y, predicted, folds=folds), abs=1e-10)


def test_folds_go_by_token_id_whatever_the_mask():
    embedding, y, _ = planted()
    mask = torch.rand(600, generator=torch.Generator().manual_seed(3)) < 0.5
    y[~mask] = torch.nan
    fit = fit_probe(embedding, y, mask=mask)
    ids = mask.nonzero().flatten().numpy()
    predicted, means = refit(embedding[mask], y[mask], ids=ids)
    assert float(fit.heldout_r2) == pytest.approx(heldout_r2(y[mask], predicted, means), abs=1e-8)
    assert float(fit.heldout_spearman) == pytest.approx(
        by_fold(scipy.stats.spearmanr, y[mask], predicted, ids=ids), abs=1e-10
    )


def test_weighted_fit_agrees_with_statsmodels_and_refits():
    embedding, y, _ = planted(noise=2.0)
    counts = torch.randint(1, 200, (600,), generator=torch.Generator().manual_seed(4))
    weights = shrunk_weights(counts)
    fit = fit_probe(embedding, y, weights=weights)
    twin = sm.WLS(y.numpy(), sm.add_constant(embedding.numpy()), weights=weights.numpy()).fit()
    assert float(fit.r2) == pytest.approx(twin.rsquared, abs=1e-8)
    assert float(fit.adjusted_r2) == pytest.approx(twin.rsquared_adj, abs=1e-8)
    np.testing.assert_allclose(fit.slope.numpy(), twin.params[1:], atol=1e-8)
    predicted, means = refit(embedding, y, weights=weights)
    assert float(fit.heldout_r2) == pytest.approx(heldout_r2(y, predicted, means, weights.numpy()), abs=1e-8)


def test_equal_weights_change_nothing_and_zero_weights_leave_rows_out():
    embedding, y, _ = planted()
    assert figures(fit_probe(embedding, y, weights=torch.full((600,), 0.3))) == pytest.approx(
        figures(fit_probe(embedding, y)), abs=1e-7
    )
    keep = torch.arange(600) < 400
    assert figures(fit_probe(embedding, y, weights=keep.double())) == pytest.approx(
        figures(fit_probe(embedding, y, mask=keep)), abs=1e-12
    )


def test_few_heavy_tokens_are_refused():
    embedding, y, _ = planted()
    counts = torch.ones(600, dtype=torch.int64)
    counts[:3] = 10**9
    with pytest.raises(ValueError, match=r"equal rows; needed are 3 x rank = 36"):
        fit_probe(embedding, y, weights=sqrt_weights(counts))


def test_several_targets_share_one_fit():
    embedding, y, _ = planted()
    both = fit_probe(embedding, torch.stack([y, -2 * y + y**2], 1))
    for target, alone in enumerate((fit_probe(embedding, y), fit_probe(embedding, -2 * y + y**2))):
        for name in (*FIGURES, "intercept", "slope"):
            np.testing.assert_allclose(getattr(both, name)[target], getattr(alone, name), rtol=1e-9, err_msg=name)
        np.testing.assert_allclose(both.fold_slope[:, target], alone.fold_slope, rtol=1e-9)


def test_predictions():
    embedding, y, _ = planted(noise=0)
    fit = fit_probe(embedding, y)
    assert torch.allclose(fit.predict(embedding), y, atol=1e-9)
    both = fit_probe(embedding, torch.stack([y, 2 * y], 1)).predict(embedding[:7])
    assert torch.allclose(both, torch.stack([y, 2 * y], 1)[:7], atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_input_gives_the_fit_of_its_values(dtype):
    embedding, y, _ = planted(4000, 16, noise=2.0)
    embedding = (embedding + 5).to(dtype)
    np.testing.assert_allclose(
        figures(fit_probe(embedding, y)), figures(fit_probe(embedding.double(), y)), atol=1e-4, rtol=1e-4
    )
    slopes = fit_probe(embedding, y).slope, fit_probe(embedding.double(), y).slope
    assert torch.allclose(*slopes, rtol=1e-4, atol=1e-4)


def test_planted_slope_is_recovered_within_its_standard_error():
    embedding, y, slope = planted(5000, 20, noise=0.8, seed=5)
    fit = fit_probe(embedding, y)
    centred = embedding - embedding.mean(0)
    errors = 0.8 * torch.linalg.inv(centred.T @ centred).diagonal().sqrt()
    scores = (fit.slope - slope) / errors
    assert scores.abs().max() < 4
    assert 0.5 < float(scores.square().mean()) < 1.7
    explained = float((embedding @ slope).var(correction=0))
    assert float(fit.heldout_r2) == pytest.approx(explained / (explained + 0.64), abs=0.02)


def test_a_random_matrix_knows_nothing_held_out():
    generator = torch.Generator().manual_seed(6)
    embedding = torch.randn(3000, 100, generator=generator)
    fit = fit_probe(embedding, torch.randn(3000, generator=generator))
    assert float(fit.heldout_r2) <= 0.01
    assert abs(float(fit.heldout_spearman)) < 0.08
    assert float(fit.r2) == pytest.approx(float(fit.null_r2), abs=0.015)
    assert abs(float(fit.adjusted_r2)) < 0.015


@settings(max_examples=15)
@given(st.integers(0, 2**31), st.floats(1e-3, 1e3), st.floats(-50, 50))
def test_scale_rotation_and_a_constant_row_change_nothing(seed, scale, shift):
    embedding, y, _ = planted(300, 6, noise=2.0)
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=generator))[0]
    row = shift * torch.randn(6, dtype=torch.float64, generator=generator)
    expected, fit = fit_probe(embedding, y), fit_probe((embedding @ rotation + row) * scale, y)
    np.testing.assert_allclose(figures(fit), figures(expected), atol=1e-8)
    np.testing.assert_allclose(fit.slope, expected.slope @ rotation / scale, rtol=1e-6, atol=1e-9 / scale)


@settings(max_examples=15)
@given(st.integers(0, 2**31))
def test_rows_permuted_within_folds_with_their_targets_change_nothing(seed):
    embedding, y, _ = planted(300, 6, noise=2.0)
    within = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
    order = torch.arange(300).reshape(60, 5)[within].flatten()
    np.testing.assert_allclose(
        figures(fit_probe(embedding[order], y[order])), figures(fit_probe(embedding, y)), atol=1e-9
    )


def test_merged_sums_hold_the_same_coefficients():
    embedding, y, _ = planted()
    halves = probe_sums(embedding[:250], y[:250]) + probe_sums(embedding[250:], y[250:], first_id=250)
    found, fit = solve_sums(halves, exact=False), fit_probe(embedding, y)
    np.testing.assert_allclose(found.slope[:, 0], fit.slope, rtol=1e-9)
    np.testing.assert_allclose(found.fold_slope[:, :, 0], fit.fold_slope, rtol=1e-9)
    np.testing.assert_allclose(found.fold_intercept[:, 0], fit.fold_intercept, rtol=1e-9)


def test_repeated_calls_agree_bit_by_bit_and_draw_no_random_numbers():
    embedding, y, _ = planted()
    state = torch.get_rng_state()
    first, second = fit_probe(embedding.float(), y), fit_probe(embedding.float(), y)
    assert torch.equal(state, torch.get_rng_state())
    for name, value in vars(first).items():
        assert torch.equal(value, getattr(second, name)), name
