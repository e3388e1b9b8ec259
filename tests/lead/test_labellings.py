import numpy as np
import pytest

from trainhooks.lead.labellings import (
    Coordinates,
    block_rotations,
    permuted_labellings,
    resampling_weights,
    sign_flips,
    singular_basis,
    space_rotations,
    unit_labelling,
)

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
    np.testing.assert_allclose(np.abs(basis.combine(change, np.eye(DIMS))), np.abs(left), atol=1e-6)


def test_singular_basis_leaves_null_directions_out_and_refuses_no_change(change):
    flat = change.copy()
    flat[:, 3] = 2.0 * flat[:, 1]
    assert singular_basis(flat).values.shape == (DIMS - 1,)
    with pytest.raises(ValueError, match="nothing moved"):
        singular_basis(np.zeros((ROWS, DIMS), np.float32))


def test_coordinates_put_the_labelling_together_again(change, labelling):
    basis = singular_basis(change)
    at = Coordinates.of(labelling, change=change, basis=basis)
    within = basis.combine(change, at.coefficients[:, None])[:, 0]
    np.testing.assert_allclose(within + at.outside, labelling, atol=1e-12)
    assert np.abs(change.T @ at.outside).max() < 1e-5
    assert np.linalg.norm(at.coefficients) ** 2 + np.linalg.norm(at.outside) ** 2 == pytest.approx(1.0)


COEFFICIENTS = np.random.default_rng(4).standard_normal(17)


@pytest.mark.parametrize("draw", [sign_flips, block_rotations, space_rotations])
def test_draws_keep_the_leading_coefficient_and_the_norm(draw):
    drawn = draw(COEFFICIENTS, draws=DRAWS, rng=np.random.default_rng(0))
    np.testing.assert_allclose(drawn[0], COEFFICIENTS[0])
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=0), np.linalg.norm(COEFFICIENTS))
    assert len(np.unique(drawn[1:].round(9), axis=1).T) == DRAWS


def test_sign_flips_keep_every_size():
    drawn = sign_flips(COEFFICIENTS, draws=DRAWS, rng=np.random.default_rng(0))
    np.testing.assert_allclose(np.abs(drawn), np.tile(np.abs(COEFFICIENTS)[:, None], DRAWS))
    assert (np.sign(drawn[1:]) != np.sign(COEFFICIENTS[1:, None])).any(axis=1).all()


def test_block_rotations_keep_what_lies_in_each_block():
    drawn = block_rotations(COEFFICIENTS, draws=DRAWS, rng=np.random.default_rng(0))
    for block in (slice(1, 3), slice(3, 7), slice(7, 15), slice(15, 17)):
        np.testing.assert_allclose(np.linalg.norm(drawn[block], axis=0), np.linalg.norm(COEFFICIENTS[block]))
    assert np.ptp(np.linalg.norm(drawn[1:4], axis=0)) > 0.1


def test_space_rotations_load_on_all_directions_alike():
    drawn = space_rotations(COEFFICIENTS, draws=4000, rng=np.random.default_rng(0))
    share = np.square(drawn[1:]).mean(axis=1) / np.square(COEFFICIENTS[1:]).sum()
    np.testing.assert_allclose(share, 1 / 16, rtol=0.15)


@pytest.mark.parametrize("draw", [sign_flips, block_rotations, space_rotations])
def test_a_labelling_of_one_direction_has_itself_as_its_draws(draw):
    alone = np.array([0.7])
    np.testing.assert_array_equal(draw(alone, draws=3, rng=np.random.default_rng(0)), np.full((1, 3), 0.7))


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


@pytest.mark.parametrize("least", [1.0, 1e-5])
def test_draws_are_right_to_1e5_whatever_the_change_is_worst_known_in(least):
    rng = np.random.default_rng(6)
    left, _ = np.linalg.qr(rng.standard_normal((3000, DIMS)))
    right, _ = np.linalg.qr(rng.standard_normal((DIMS, DIMS)))
    change = (left * np.geomspace(100.0, 100.0 * least, DIMS) @ right.T).astype(np.float32)
    basis = singular_basis(change)
    coefficients = sign_flips(np.full(len(basis.values), DIMS**-0.5), draws=DRAWS, rng=rng)
    exact = basis.combine(change, coefficients)
    drawn = np.concatenate([part for _, part in basis.combined_blocks(change, coefficients)])
    assert drawn.dtype == (np.float32 if least == 1.0 else np.float64)
    assert np.linalg.norm(drawn - exact, axis=0).max() < 1e-5
