import numpy as np
import pytest
import torch
from naive_probe import planted

from trainhooks.probe import probe_sums, solve_sums
from trainhooks.probe.solve import cholesky_slope, least_norm_slope, smallest_eigenvalue, tolerance


def correlated(dim, *, smallest, rows=4000, seed=0):
    """Rows whose smallest principal spread is `smallest` of the largest, and a target that needs all of them."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64, generator=generator))[0]
    spread = torch.logspace(0, float(np.log10(smallest)), dim, dtype=torch.float64)
    scores = torch.randn(rows, dim, dtype=torch.float64, generator=generator)
    y = scores.sum(1) + torch.randn(rows, dtype=torch.float64, generator=generator)
    return (scores * spread) @ basis, y


@pytest.mark.parametrize("smallest", [1.0, 1e-2, 1e-4])
def test_both_solvers_agree_with_lstsq(smallest):
    embedding, y = correlated(24, smallest=smallest)
    total = probe_sums(embedding, y).total()
    centred = (embedding - embedding.mean(0)).numpy()
    expected = np.linalg.lstsq(centred, (y - y.mean()).numpy(), rcond=None)[0]
    for slope_of in (cholesky_slope, least_norm_slope):
        found = slope_of(total)
        np.testing.assert_allclose(found.slope[:, 0], expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())
        assert float(found.rank) == 24


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spare", [0, 1, 40])
@pytest.mark.parametrize("common", [0.0, 10.0])
def test_rank_counts_independent_columns(dtype, spare, common):
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(3000, 40, dtype=torch.float64, generator=generator) + 2
    base += common * torch.randn(3000, 1, dtype=torch.float64, generator=generator)
    mixed = base @ torch.randn(40, spare, dtype=torch.float64, generator=generator)
    embedding = torch.cat([base, mixed, torch.full((3000, 2), 0.3, dtype=torch.float64)], 1).to(dtype)
    total = probe_sums(embedding, base[:, 0], dtype=dtype).total()
    assert float(cholesky_slope(total).rank) == 40
    if dtype == torch.float64:
        assert float(least_norm_slope(total).rank) == 40


def test_rank_decisions_do_not_turn_on_units_with_cholesky():
    embedding, y, _ = planted(500, 6)
    scales = torch.logspace(-8, 8, 6, dtype=torch.float64)
    found = cholesky_slope(probe_sums(embedding * scales, y).total())
    np.testing.assert_allclose(
        found.slope[:, 0] * scales, cholesky_slope(probe_sums(embedding, y).total()).slope[:, 0], rtol=1e-7
    )
    assert float(found.rank) == 6


def test_float32_noise_in_the_spectrum_stays_below_the_tolerance():
    """The tolerance is a claim on rounding: float32 sums of exactly collinear columns must obey it."""
    generator = torch.Generator().manual_seed(2)
    base = torch.randn(6000, 30, generator=generator) + torch.randn(6000, 1, generator=generator) * 3
    embedding = torch.cat([base, base * 0.5, base * 0.25 + 0], 1)  # exact in float32
    total = probe_sums(embedding, torch.ones(6000), dtype=torch.float32).total()
    scale = total.gram.diagonal().rsqrt()
    noise = torch.linalg.eigvalsh(total.gram * scale[:, None] * scale)[:60].abs().max()
    assert float(noise) < tolerance(total) / 10


def test_exact_and_quick_solutions_agree_where_columns_are_independent():
    embedding, y, _ = planted()
    sums = probe_sums(embedding, y)
    quick, exact = solve_sums(sums, exact=False), solve_sums(sums, exact=True)
    for name in ("slope", "intercept", "fold_slope", "fold_intercept", "trained_mean", "rank"):
        np.testing.assert_allclose(getattr(quick, name), getattr(exact, name), rtol=1e-10, err_msg=name)
    assert 0 < float(quick.pivot) <= 1
    assert float(exact.pivot) == 1


def test_smallest_eigenvalue():
    embedding, y, _ = planted(500, 6)
    centred = ((embedding - embedding.mean(0)) / embedding.std(0, correction=0)).numpy()
    expected = np.linalg.eigvalsh(centred.T @ centred / 500)[0]
    assert smallest_eigenvalue(probe_sums(embedding, y).total()) == pytest.approx(expected, rel=1e-9)
    constant = torch.cat([embedding, torch.ones(500, 1)], 1)
    assert smallest_eigenvalue(probe_sums(constant, y).total()) == 0


def test_an_exploded_row_leaves_the_slope_a_number():
    embedding, y, _ = planted(2000, 8)
    embedding[3] = 1e9
    found = solve_sums(probe_sums(embedding.float(), y, dtype=torch.float32), exact=False)
    assert found.slope.isfinite().all()
    assert found.fold_slope.isfinite().all()
