import numpy as np
import pytest
import torch
from naive_probe import heldout_r2, planted, refit

from trainhooks.probe import (
    Concentration,
    Sparsity,
    dimensions_needed,
    fit_probe,
    gini,
    hoyer,
    participation_ratio,
    probe_sparsity,
    probe_sums,
    refit_curve,
    saliency,
    unique_saliency,
)
from trainhooks.probe.sparsity import haar_rotation, rotate


def gini_twin(values):
    n = len(values)
    return sum(abs(a - b) for a in values for b in values) / (2 * n * n * np.mean(values))


def test_measures_against_twins():
    s = torch.rand(40, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) ** 3
    values = s.numpy()
    assert float(gini(s)) == pytest.approx(gini_twin(values), abs=1e-12)
    expected = (40**0.5 - values.sum() / np.sqrt((values**2).sum())) / (40**0.5 - 1)
    assert float(hoyer(s)) == pytest.approx(expected, abs=1e-12)
    assert float(participation_ratio(s)) == pytest.approx((values**2).sum() ** 2 / (values**4).sum())


@pytest.mark.parametrize("measure", [gini, hoyer, participation_ratio])
def test_measures_see_neither_scale_nor_order(measure):
    s = torch.rand(30, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert float(measure(s * 1e4)) == pytest.approx(float(measure(s)), rel=1e-12)
    assert float(measure(s.flip(0))) == pytest.approx(float(measure(s)), rel=1e-12)


def test_measures_of_equal_single_and_zero():
    equal, single, zero = torch.ones(8), torch.eye(8)[3], torch.zeros(8)
    assert [float(m(equal)) for m in (gini, hoyer, participation_ratio)] == pytest.approx([0, 0, 8], abs=1e-7)
    assert [float(m(single)) for m in (gini, hoyer, participation_ratio)] == pytest.approx([7 / 8, 1, 1])
    assert all(m(zero).isnan() for m in (gini, hoyer, participation_ratio))
    assert hoyer(torch.ones(1)).isnan()


def test_saliency_is_the_spread_of_a_dimension_s_share():
    embedding, y, _ = planted()
    fit, total = fit_probe(embedding, y), probe_sums(embedding, y).total()
    expected = (embedding * fit.slope).std(0, correction=0)
    np.testing.assert_allclose(saliency(total, fit.slope), expected, rtol=1e-10)


def test_unique_saliency_is_what_a_removal_costs():
    embedding, y, _ = planted(noise=2.0)
    embedding[:, 1] += embedding[:, 0]
    fit, total = fit_probe(embedding, y), probe_sums(embedding, y).total()
    for i, unique in enumerate(unique_saliency(total, fit.slope)):
        keep = [j for j in range(12) if j != i]
        lost = (float(fit.r2) - float(fit_probe(embedding[:, keep], y).r2)) * float(total.square[0])
        assert float(unique) == pytest.approx(lost, rel=1e-6, abs=1e-8)


def test_collinear_dimensions_have_no_unique_saliency():
    embedding, y, _ = planted()
    embedding = torch.cat([embedding, embedding[:, :1], torch.ones(600, 1)], 1)
    fit, total = fit_probe(embedding, y), probe_sums(embedding, y).total()
    unique = unique_saliency(total, fit.slope)
    assert unique[[0, 12, 13]].max() < 1e-6 * unique.max()
    assert saliency(total, fit.slope)[0] > 0.05


def test_refit_curve_agrees_with_explicit_refits():
    embedding, y, _ = planted(noise=2.0)
    orders = torch.stack([torch.randperm(12, generator=torch.Generator().manual_seed(f)) for f in range(5)])
    curve = refit_curve(probe_sums(embedding, y), orders=orders)
    for m in (1, 4, 11, 12):
        predicted, means = np.empty(600), np.empty(600)
        for fold in range(5):
            held = np.arange(600) % 5 == fold
            p, q = refit(embedding[:, orders[fold, :m]], y)
            predicted[held], means[held] = p[held], q[held]
        assert float(curve[m - 1]) == pytest.approx(heldout_r2(y, predicted, means), abs=1e-8)


def test_refit_curve_orders_on_training_folds_and_ends_at_the_probe():
    embedding, y, _ = planted(noise=2.0)
    sums, fit = probe_sums(embedding, y), fit_probe(embedding, y)
    spread = torch.stack([embedding[torch.arange(600) % 5 != f].std(0, correction=0) for f in range(5)])
    orders = (fit.fold_slope.abs() * spread).argsort(1, descending=True)
    np.testing.assert_allclose(refit_curve(sums), refit_curve(sums, orders=orders), atol=1e-12)
    assert float(refit_curve(sums)[-1]) == pytest.approx(float(fit.heldout_r2), abs=1e-9)


def test_refit_curve_lives_through_collinear_and_constant_columns():
    embedding, y, _ = planted(noise=2.0)
    wide = torch.cat([embedding, embedding[:, :4] * 2, torch.ones(600, 2)], 1)
    curve = refit_curve(probe_sums(wide, y))
    assert float(curve[-1]) == pytest.approx(float(fit_probe(embedding, y).heldout_r2), abs=1e-6)
    assert refit_curve(probe_sums(embedding, torch.ones(600))).isnan().all()


def test_dimensions_needed():
    assert dimensions_needed(torch.tensor([0.1, 0.85, 0.91, 1.0])) == 3
    assert dimensions_needed(torch.tensor([0.1, 0.5, 0.45, 0.5]), share=1.0) == 2
    assert np.isnan(dimensions_needed(torch.tensor([0.1, -0.2])))


def test_rotations_are_orthogonal_uniform_and_act_on_the_sums():
    rotation = haar_rotation(12, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(rotation @ rotation.T, torch.eye(12, dtype=torch.float64), atol=1e-12)
    generator = torch.Generator().manual_seed(0)
    traces = torch.stack([haar_rotation(4, generator=generator).trace() for _ in range(2000)])
    assert abs(float(traces.mean())) < 0.1  # the trace of a Haar matrix has mean 0 and variance 1
    assert abs(float(traces.var()) - 1) < 0.12
    embedding, y, _ = planted()
    rotated, expected = rotate(probe_sums(embedding, y), rotation), probe_sums(embedding @ rotation, y)
    for name in ("mean_x", "gram", "moment"):
        np.testing.assert_allclose(getattr(rotated, name), getattr(expected, name), atol=1e-9, err_msg=name)


def test_a_sparse_slope_stands_out_from_rotations_and_random_orders():
    slope = torch.zeros(32, dtype=torch.float64)
    slope[[3, 17]] = torch.tensor([3.0, -1.0], dtype=torch.float64)
    embedding, y, _ = planted(2000, 32, slope=slope)
    found = probe_sparsity(probe_sums(embedding, y), draws=5)
    assert found.as_is.dimensions == 2
    assert min(found.random_order) > 4
    for measure in ("gini", "hoyer"):
        assert getattr(found.as_is, measure) > max(getattr(r, measure) for r in found.rotated) + 0.1
    assert found.as_is.participation_ratio < min(r.participation_ratio for r in found.rotated)
    assert found.as_is.unique_participation_ratio < min(r.unique_participation_ratio for r in found.rotated)


def test_the_participation_ratio_of_unique_saliency_is_of_that_itself():
    embedding, y, _ = planted(800, 16, noise=1.0)
    sums, fit = probe_sums(embedding, y), fit_probe(embedding, y)
    inverse = np.linalg.inv(np.cov(embedding.numpy(), rowvar=False, bias=True) * len(y))
    s = fit.slope.numpy() ** 2 / np.diag(inverse)
    expected = (s**2).sum() ** 2 / (s**4).sum()
    assert probe_sparsity(sums, draws=1).as_is.unique_participation_ratio == pytest.approx(expected, rel=1e-8)


def test_rotated_figures_are_those_of_the_rotated_embedding():
    """Leading columns of projected sums stand for whole rotated ones."""
    embedding, y, _ = planted(700, 40, noise=3.0)
    found = probe_sparsity(probe_sums(embedding, y), draws=2, seed=3)
    generator = torch.Generator().manual_seed(3)
    for one in found.rotated:
        rotation = haar_rotation(40, generator=generator)
        own = probe_sparsity(probe_sums(embedding @ rotation, y), draws=0).as_is
        for name, value in vars(own).items():
            assert getattr(one, name) == pytest.approx(value, rel=1e-6), name


def concentration(*values):
    return Concentration(*map(float, values))


def test_one_p_for_five_figures():
    """Five figures of axes without privilege: 5% of cases are called sparser, not one in eleven."""
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal((400, 100, 5))
    found = [Sparsity(concentration(*case[0]), tuple(concentration(*row) for row in case[1:]), ()) for case in drawn]
    share = np.mean([one.p <= 0.05 for one in found])
    assert 0.02 < share < 0.085  # three standard errors of 400 cases around 0.05
    each = np.mean([[(case[1:, j] >= case[0, j]).mean() <= 0.05 for j in range(5)] for case in drawn], axis=0)
    assert np.mean([any((c[1:, j] >= c[0, j]).mean() <= 0.05 for j in range(5)) for c in drawn]) > 0.15, each


def test_p_of_a_sparse_slope_and_where_nothing_is_defined():
    slope = torch.zeros(32, dtype=torch.float64)
    slope[[3, 17]] = torch.tensor([3.0, -1.0], dtype=torch.float64)
    embedding, y, _ = planted(2000, 32, slope=slope)
    assert probe_sparsity(probe_sums(embedding, y)).p == pytest.approx(0.01)
    nothing = concentration(*[float("nan")] * 5)
    assert np.isnan(Sparsity(nothing, (nothing,) * 99, ()).p)
    flat = concentration(0.1, np.nan, 3, 3, np.nan)
    assert np.isnan(Sparsity(flat, (flat,) * 99, ()).p)
    assert np.isnan(Sparsity(flat, (), ()).p)


@pytest.mark.parametrize(("rows", "columns", "mean"), [(20, 64, 1e4), (12, 256, 1e3), (70, 64, 1e4), (40, 32, 1e5)])
def test_few_rows_many_columns_and_a_long_mean_row(rows, columns, mean):
    """Rounding leaves a Gram matrix without a Cholesky factor."""
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(rows, columns, generator=generator) + mean * torch.randn(1, columns, generator=generator)
    y = torch.randn(rows, dtype=torch.float64, generator=generator)
    sums = probe_sums(embedding, y)
    curve = refit_curve(sums)
    least = rows - -(-rows // 5)
    assert curve[: least - 1].isfinite().all()
    assert curve[least - 1 :].isnan().all()
    assert probe_sparsity(sums, draws=1).as_is.gini > 0


def test_draws_repeat_and_leave_the_global_generator_alone():
    embedding, y, _ = planted(200, 6)
    sums, state = probe_sums(embedding, y), torch.get_rng_state()
    first = probe_sparsity(sums, draws=2)
    assert torch.equal(state, torch.get_rng_state())
    assert first == probe_sparsity(sums, draws=2)
    assert first.rotated != probe_sparsity(sums, draws=2, seed=1).rotated


def test_several_targets_are_refused():
    embedding, y, _ = planted(200, 6)
    with pytest.raises(ValueError, match="one target, got 2"):
        refit_curve(probe_sums(embedding, torch.stack([y, y], 1)))


@pytest.mark.parametrize("rows", [2, 3, 10, 12])
def test_refits_on_too_few_rows_are_nan(rows):
    embedding, y, _ = planted(rows, 12)
    sums = probe_sums(embedding, y)
    least = rows - max(len(range(fold, rows, 5)) for fold in range(5))
    curve = refit_curve(sums)
    assert curve[: max(0, least - 1)].isfinite().all()
    assert curve[max(0, least - 1) :].isnan().all()
    assert np.isnan(probe_sparsity(sums, draws=1).as_is.dimensions)
