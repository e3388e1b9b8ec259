import numpy as np
import pytest

from trainhooks.lead import ArrayTrajectory, StraightLine, Trajectory, onset, random_walk, thinned
from trainhooks.lead.trajectory import matrices, unit_scale

RNG = np.random.default_rng(0)


def test_what_offers_steps_length_and_records_is_a_trajectory():
    run = ArrayTrajectory(np.zeros((3, 4, 2), np.float32), steps=np.arange(3))
    assert isinstance(run, Trajectory)
    with pytest.raises(ValueError, match="3 matrices and 2 steps"):
        ArrayTrajectory(np.zeros((3, 4, 2), np.float32), steps=np.arange(2))


def test_straight_line_goes_from_end_to_end():
    first, last = RNG.standard_normal((2, 6, 3)).astype(np.float32)
    line = StraightLine(first, last, steps=np.array([0, 5, 9]), progress=np.array([0.0, 0.25, 1.0]))
    np.testing.assert_array_equal(line[0], first)
    np.testing.assert_allclose(line[1], 0.75 * first + 0.25 * last, atol=1e-6)
    np.testing.assert_allclose(line[2], last, atol=1e-6)


def test_random_walk_covers_half_of_the_distance_at_three_quarters():
    walk = random_walk(np.arange(401), rows=300, dims=20, seed=3)
    ways = np.linalg.norm((walk.matrices - walk.matrices[-1]).reshape(401, -1), axis=1)
    covered = 1.0 - ways / ways[0]
    assert onset(walk.steps, covered, q=0.5).step == pytest.approx(300, abs=6)
    assert onset(walk.steps, covered, q=0.9).step == pytest.approx(396, abs=2)


def test_random_walk_spreads_with_the_steps_between_records():
    walk = random_walk(np.array([5, 6, 106]), rows=200, dims=50, seed=1)
    assert not walk[0].any()
    assert np.std(walk[1]) == pytest.approx(1.0, rel=0.05)
    assert np.std(walk[2] - walk[1]) == pytest.approx(10.0, rel=0.05)


def test_thinned_keeps_ends_order_and_number():
    steps = np.arange(0, 5001)
    kept = thinned(steps, limit=50)
    assert len(kept) <= 50
    assert (kept[0], kept[-1]) == (0, 5000)
    assert np.all(np.diff(kept) > 0)
    late = np.diff(np.log1p(steps[kept]))[-20:]
    np.testing.assert_allclose(late, late.mean(), rtol=0.1)
    np.testing.assert_array_equal(thinned(steps[:7], limit=7), np.arange(7))
    np.testing.assert_array_equal(thinned(np.array([0, 1, 1000, 1001]), limit=3), [0, 1, 3])


def test_matrices_gives_masked_rows_in_float32():
    run = ArrayTrajectory(RNG.standard_normal((3, 5, 2)), steps=np.arange(3))
    mask = np.array([True, False, True, True, False])
    (got,) = matrices(run, np.array([1]), mask=mask)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, run.matrices[1][[0, 2, 3]], rtol=1e-6)


def test_matrices_refuses_other_rows_and_broken_records():
    values = np.ones((2, 5, 2), np.float32)
    values[1, 3, 0] = np.inf
    run = ArrayTrajectory(values, steps=np.array([0, 8]))
    with pytest.raises(ValueError, match=r"targets have 4 entries.*step 0 has 5 rows"):
        next(matrices(run, np.array([0]), mask=np.ones(4, dtype=bool)))
    with pytest.raises(ValueError, match="step 8 holds NaN or infinity"):
        next(matrices(run, np.array([1]), mask=np.ones(5, dtype=bool)))
    masked = np.array([True, True, True, False, True])
    assert np.isfinite(next(matrices(run, np.array([1]), mask=masked))).all()


@pytest.mark.parametrize("size", [1e-38, 3e-20, 0.7, 1.0, 5e20, 3e38])
def test_unit_scale_is_a_power_of_two_that_brings_the_change_near_one(size):
    last = np.array([[0.0, 1.0], [-0.5, 0.25]], dtype=np.float32) * np.float32(size)
    scale = unit_scale(np.zeros_like(last), last)
    assert np.frexp(scale)[0] == 0.5
    assert 0.5 < np.abs(last * scale).max() < 4.0


def test_matrices_refuses_what_lies_too_far_has_no_columns_or_leaves_float32():
    mask = np.ones(2, dtype=bool)
    run = ArrayTrajectory(np.array([[[1.0], [1e300]]]), steps=np.arange(1))
    with pytest.raises(ValueError, match="more than float32"):
        list(matrices(run, np.arange(1), mask=mask))
    with pytest.raises(ValueError, match="reaches 9"):
        list(
            matrices(
                ArrayTrajectory(np.full((1, 2, 1), -9.0), steps=np.arange(1)), np.arange(1), mask=mask, farthest=8.0
            )
        )
    with pytest.raises(ValueError, match="needed is an output embedding"):
        list(matrices(ArrayTrajectory(np.empty((1, 2, 0)), steps=np.arange(1)), np.arange(1), mask=mask))
