import numpy as np
import pytest
import torch
from naive_probe import heldout_r2, planted, refit

from trainhooks.probe import fit_probe


def test_fewer_rows_than_dimensions_takes_the_least_norm():
    embedding, y, _ = planted(40, 64)
    fit = fit_probe(embedding, y)
    predicted, means = refit(embedding, y)
    assert float(fit.rank) == 39
    assert float(fit.r2) == pytest.approx(1)
    assert float(fit.null_r2) == pytest.approx(1)
    assert fit.adjusted_r2.isnan()
    assert float(fit.heldout_r2) == pytest.approx(heldout_r2(y, predicted, means), abs=1e-8)
    centred = (embedding - embedding.mean(0)).numpy()
    slope = np.linalg.lstsq(centred, (y - y.mean()).numpy(), rcond=None)[0]
    np.testing.assert_allclose(fit.slope, slope, atol=1e-9)


def test_float32_rows_fewer_than_dimensions_are_summed_in_float64():
    embedding, y, _ = planted(40, 64)
    embedding = embedding.float()
    assert float(fit_probe(embedding, y).heldout_r2) == pytest.approx(
        float(fit_probe(embedding.double(), y).heldout_r2), abs=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_and_collinear_columns_cost_rank_alone(dtype):
    embedding, y, _ = planted(500, 8, noise=2.0)
    embedding = embedding.to(dtype)
    wide = torch.cat([embedding, torch.full((500, 2), 3.7, dtype=dtype), embedding[:, :3] * 0.3], 1)
    expected, fit = fit_probe(embedding, y), fit_probe(wide, y)
    assert (float(expected.rank), float(fit.rank)) == (8, 8)
    for name in ("r2", "adjusted_r2", "heldout_r2", "heldout_spearman"):
        assert float(getattr(fit, name)) == pytest.approx(float(getattr(expected, name)), abs=1e-6), name
    assert fit.slope[8:10].abs().max() < 1e-9


@pytest.mark.parametrize("ratio", [1e-2, 1e-3, 1e-4])
def test_ill_conditioned_float32_rows_keep_four_digits(ratio):
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(32, 32, dtype=torch.float64, generator=generator))[0]
    spread = torch.logspace(0, float(np.log10(ratio)), 32, dtype=torch.float64)
    embedding = (torch.randn(2000, 32, dtype=torch.float64, generator=generator) * spread @ basis).float()
    hidden = embedding.double() @ (basis.T @ (1 / spread))
    y = hidden + hidden.std() * torch.randn(2000, dtype=torch.float64, generator=generator)
    fit, exact = fit_probe(embedding, y), fit_probe(embedding.double(), y)
    assert float(fit.rank) == 32
    for name in ("r2", "heldout_r2", "heldout_spearman"):
        assert float(getattr(fit, name)) == pytest.approx(float(getattr(exact, name)), abs=1e-4), name
    assert torch.linalg.vector_norm(fit.slope - exact.slope) < 1e-3 * torch.linalg.vector_norm(exact.slope)


def test_a_column_that_only_one_fold_has():
    embedding, y, _ = planted(300, 5, noise=1.0)
    column = torch.zeros(300, 1, dtype=torch.float64)
    column[10] = 1
    fit = fit_probe(torch.cat([embedding, column], 1), y)
    predicted, means = refit(torch.cat([embedding, column], 1), y)
    assert float(fit.heldout_r2) == pytest.approx(heldout_r2(y, predicted, means), abs=1e-6)


def test_constant_target_has_no_r2_but_an_error_of_zero():
    embedding, _, _ = planted(97, 5)
    fit = fit_probe(embedding, torch.full((97,), 0.1, dtype=torch.float64))
    for name in ("r2", "adjusted_r2", "heldout_r2", "heldout_pearson", "heldout_spearman"):
        assert getattr(fit, name).isnan(), name
    assert float(fit.heldout_mse) == pytest.approx(0, abs=1e-20)
    assert float(fit.intercept) == pytest.approx(0.1)


@pytest.mark.parametrize("value", [0.0, 0.1])
def test_equal_rows_predict_the_mean(value):
    _, y, _ = planted(200, 5)
    fit = fit_probe(torch.full((200, 5), value), y)
    assert float(fit.rank) == 0
    assert float(fit.r2) == pytest.approx(0, abs=1e-12)
    assert float(fit.heldout_r2) == pytest.approx(0, abs=1e-12)
    assert fit.heldout_spearman.isnan()
    assert fit.slope.abs().max() == 0


def test_vocabulary_of_two():
    fit = fit_probe(torch.tensor([[1.0, 2.0], [3.0, 5.0]]), torch.tensor([1.0, 2.0]))
    assert float(fit.r2) == pytest.approx(1)
    assert float(fit.rank) == 1
    assert fit.adjusted_r2.isnan()
    assert fit.heldout_spearman.isnan()
    assert float(fit.heldout_mse) == pytest.approx(1)  # each is predicted by the other's target


def test_one_token():
    fit = fit_probe(torch.tensor([[1.0, 2.0]]), torch.tensor([3.0]))
    assert float(fit.rank) == 0
    assert float(fit.intercept) == pytest.approx(3)
    for name in ("r2", "adjusted_r2", "null_r2", "heldout_r2", "heldout_mse", "heldout_spearman"):
        assert getattr(fit, name).isnan(), name


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 1e30])
def test_rows_that_are_not_finite_are_named(bad):
    embedding, y, _ = planted(300, 5)
    embedding = embedding.float()
    embedding[[17, 40, 8], [0, 1, 2]] = bad
    with pytest.raises(ValueError, match=r"3 rows of the output embedding.*\[8, 17, 40\]"):
        fit_probe(embedding, y)
    keep = torch.ones(300, dtype=torch.bool)
    keep[[8, 17, 40]] = False
    assert float(fit_probe(embedding, y, mask=keep).r2) > 0.9


def test_bad_targets_weights_and_shapes_are_refused():
    embedding, y, _ = planted(300, 5)
    broken = y.clone()
    broken[5] = torch.nan
    with pytest.raises(ValueError, match=r"targets of 1 rows.*\[5\]"):
        fit_probe(embedding, broken)
    with pytest.raises(ValueError, match="weights of 300 rows"):
        fit_probe(embedding, y, weights=-torch.ones(300))
    with pytest.raises(ValueError, match="leaves no row"):
        fit_probe(embedding, y, mask=torch.zeros(300, dtype=torch.bool))
    with pytest.raises(ValueError, match="leave no row"):
        fit_probe(embedding, y, weights=torch.zeros(300))
    with pytest.raises(ValueError, match="folds is 1"):
        fit_probe(embedding, y, folds=1)


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e18])
def test_the_unit_of_float32_rows_changes_no_figure(scale):
    embedding, y, _ = planted(300, 8)
    base, fit = fit_probe(embedding, y), fit_probe((embedding * scale).float(), y)
    assert float(fit.rank) == 8
    assert float(fit.heldout_r2) == pytest.approx(float(base.heldout_r2), abs=1e-6)
    np.testing.assert_allclose(fit.slope * scale, base.slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_an_embedding_without_rows_or_columns_is_refused(shape):
    with pytest.raises(ValueError, match=r"fit on at least one token|dim > 0"):
        fit_probe(torch.zeros(shape), torch.zeros(shape[0]))


def test_a_target_that_is_constant_for_every_slope_correlates_with_nothing():
    """The slope is then rounding, and so would its correlation be."""
    embedding = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for varying in ([0], [7], list(range(0, 50, 5))):  # in one fold each
        y = torch.full((50,), 3.0, dtype=torch.float64)
        y[varying] += torch.linspace(1, 2, len(varying), dtype=torch.float64)
        fit = fit_probe(embedding, y)
        assert torch.isnan(fit.heldout_spearman)
        assert torch.isnan(fit.heldout_pearson)
    y = torch.full((50,), 3.0, dtype=torch.float64)
    y[[0, 1, 2, 3, 4, 5, 6]] += torch.arange(7.0, dtype=torch.float64)
    assert torch.isfinite(fit_probe(embedding, y).heldout_spearman)
