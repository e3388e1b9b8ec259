import numpy as np
import pytest

from trainhooks.convergence.labellings import (
    matched_labellings,
    permuted_labellings,
    resampling_weights,
    sign_flipped_labellings,
    singular_basis,
    unit_labelling,
)
from trainhooks.convergence.lead import leading_left_vector

ROWS, DIMS, DRAWS = 90, 7, 40


@pytest.fixture
def change():
    values = np.random.default_rng(1).standard_normal((ROWS, DIMS)) * np.arange(DIMS, 0, -1)
    return (values - values.mean(axis=0)).astype(np.float32)


@pytest.fixture
def labelling(change):
    return unit_labelling(change[:, 0] + np.random.default_rng(2).standard_normal(ROWS))


def test_unit_labelling_is_centred_of_norm_one_and_free_of_unit():
    y = np.random.default_rng(0).standard_normal(ROWS)
    unit = unit_labelling(y)
    assert unit.sum() == pytest.approx(0.0, abs=1e-12)
    assert np.linalg.norm(unit) == pytest.approx(1.0)
    np.testing.assert_allclose(unit_labelling(7.0 + 3.0 * y), unit, atol=1e-12)


@pytest.mark.parametrize("targets", [np.full(20, 4.2), np.r_[np.arange(19.0), np.nan], np.r_[0.0, np.inf]])
def test_unit_labelling_refuses_what_has_no_direction(targets):
    with pytest.raises(ValueError, match="constant or not finite"):
        unit_labelling(targets)


def test_singular_basis_is_that_of_a_full_decomposition(change, labelling):
    left, values, right = np.linalg.svd(change.astype(np.float64), full_matrices=False)
    basis = singular_basis(change)
    np.testing.assert_allclose(basis.values, values, rtol=1e-9)
    np.testing.assert_allclose(np.abs(np.sum(basis.right * right.T, axis=0)), 1.0, rtol=1e-9)
    np.testing.assert_allclose(np.abs(basis.coefficients(change, labelling)), np.abs(left.T @ labelling), atol=1e-9)
    assert abs(leading_left_vector(change, basis=basis) @ left[:, 0]) == pytest.approx(1.0)


def test_singular_basis_leaves_null_directions_out_and_refuses_no_change(change):
    flat = change.copy()
    flat[:, 3] = 2.0 * flat[:, 1]
    assert singular_basis(flat).values.shape == (DIMS - 1,)
    with pytest.raises(ValueError, match="nothing moved"):
        singular_basis(np.zeros((ROWS, DIMS), np.float32))


def test_matched_labellings_share_only_the_leading_correlation(change, labelling):
    leading = leading_left_vector(change, basis=singular_basis(change))
    drawn = matched_labellings(labelling, leading=leading, draws=DRAWS, rng=np.random.default_rng(0))
    np.testing.assert_allclose(leading @ drawn, leading @ labelling, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=0), 1.0)
    np.testing.assert_allclose(drawn.sum(axis=0), 0.0, atol=1e-12)
    c = leading @ labelling
    others = (drawn - c * leading[:, None]).T @ (drawn - c * leading[:, None]) / (1 - c * c)
    assert np.abs(others - np.eye(DRAWS)).max() < 6 / np.sqrt(ROWS)


def test_a_labelling_that_is_the_leading_vector_has_itself_as_its_draws(change):
    leading = leading_left_vector(change, basis=singular_basis(change))
    drawn = matched_labellings(leading, leading=leading, draws=3, rng=np.random.default_rng(0))
    np.testing.assert_allclose(drawn, np.tile(leading[:, None], 3), atol=1e-7)


def test_sign_flips_keep_size_and_leading_coefficient(change, labelling):
    basis = singular_basis(change)
    drawn = sign_flipped_labellings(labelling, change=change, basis=basis, draws=DRAWS, rng=np.random.default_rng(0))
    left = change.astype(np.float64) @ basis.right / basis.values
    before, after = left.T @ labelling, left.T @ drawn
    np.testing.assert_allclose(after[0], before[0], atol=1e-9)
    np.testing.assert_allclose(np.abs(after), np.tile(np.abs(before)[:, None], DRAWS), atol=1e-9)
    assert (np.sign(after[1:]) != np.sign(before[1:, None])).any(axis=1).all()
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=0), 1.0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(change.T @ drawn, axis=0), np.linalg.norm(change.T @ labelling))


def test_permutations_keep_values_and_stay_within_bins(labelling):
    rng = np.random.default_rng(0)
    free = permuted_labellings(labelling, draws=DRAWS, rng=rng)
    np.testing.assert_array_equal(np.sort(free, axis=0), np.tile(np.sort(labelling)[:, None], DRAWS))
    binned = permuted_labellings(labelling, draws=DRAWS, rng=rng, bins=9)
    for start in range(0, ROWS, 10):
        block = np.sort(binned[start : start + 10], axis=0)
        np.testing.assert_array_equal(block, np.tile(np.sort(labelling[start : start + 10])[:, None], DRAWS))
    assert (binned != labelling[:, None]).mean() > 0.7
    np.testing.assert_array_equal(permuted_labellings(labelling, draws=2, rng=rng, bins=ROWS)[:, 0], labelling)


def test_resampling_weights_count_draws_with_replacement():
    weights = resampling_weights(500, draws=60, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(weights.sum(axis=0), 500.0)
    assert weights.mean() == 1.0
    assert weights.var() == pytest.approx(1.0, rel=0.05)
    assert (weights == 0).mean() == pytest.approx(np.exp(-1), abs=0.02)


@pytest.mark.parametrize("unit", [1e-200, 1e200])
def test_unit_labelling_takes_targets_of_any_size(unit):
    values = np.random.default_rng(0).standard_normal(50)
    np.testing.assert_allclose(unit_labelling(values * unit), unit_labelling(values), atol=1e-14)
