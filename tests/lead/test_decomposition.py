import numpy as np
import pytest
from synthetic_runs import planted_run, straight_line

from trainhooks.lead.decomposition import Decomposition, Products, centred_change
from trainhooks.lead.labellings import resampling_weights, unit_labelling

RECORDS, ROWS, DIMS = 9, 70, 6


def wandering(seed=0):
    moves = np.random.default_rng(seed).standard_normal((RECORDS, ROWS, DIMS))
    return np.cumsum(moves, axis=0) + 3.0


def labellings(count, seed=5):
    draws = np.random.default_rng(seed).standard_normal((count, ROWS))
    return np.stack([unit_labelling(draw) for draw in draws], axis=1)


def decompose(matrices, columns, weights=None):
    matrices = np.asarray(matrices, dtype=np.float32)
    sums = Decomposition(matrices[0], matrices[-1], labellings=columns, weights=weights)
    return Products.stacked([sums.measure(matrix) for matrix in matrices])


def naive(matrices, y, rows=None):
    """The slow twin in float64: forms R(t) for one labelling, over repeated rows where `rows` says so."""
    rows = np.arange(len(y)) if rows is None else rows
    moved = np.asarray(matrices, dtype=np.float64)[:, rows] - np.asarray(matrices, dtype=np.float64)[0, rows]
    changes = moved - moved.mean(axis=1, keepdims=True)
    y = y[rows] - y[rows].mean()
    parts = np.array([change.T @ y / (y @ y) for change in changes])
    rests = changes - y[None, :, None] * parts[:, None, :]
    along = parts @ parts[-1]
    rest = np.einsum("tvd,vd->t", rests, rests[-1])
    cosine = along[1:] / np.linalg.norm(parts[1:], axis=1) / np.linalg.norm(parts[-1])
    return along / along[-1], rest / rest[-1], np.r_[0.0, cosine]


def test_agrees_with_the_twin_that_forms_the_rest():
    matrices, columns = wandering(), labellings(4)
    got = decompose(matrices, columns).progress()
    for index in range(4):
        part, rest, cosine = naive(matrices, columns[:, index])
        np.testing.assert_allclose(got.part[index], part, atol=2e-5)
        np.testing.assert_allclose(got.rest[index], rest, atol=2e-5)
        np.testing.assert_allclose(got.cosine[index], cosine, atol=2e-5)


def test_size_and_distance_are_the_plain_norms():
    matrices, columns = wandering(), labellings(2)
    sums = decompose(matrices, columns)
    final = matrices - matrices[-1]
    final -= final.mean(axis=1, keepdims=True)
    ways = np.linalg.norm(final.reshape(RECORDS, -1), axis=1)
    np.testing.assert_allclose(sums.distance, ways / ways[0], atol=1e-5)
    change = centred_change(matrices[-1].astype(np.float32), first=matrices[0].astype(np.float32))
    np.testing.assert_allclose(sums.progress().size, np.linalg.norm(change.T @ columns, axis=0), rtol=1e-5)


def test_each_bootstrap_sample_agrees_with_repeating_its_rows():
    matrices, columns = wandering(), labellings(3)
    weights = resampling_weights(ROWS, draws=5, rng=np.random.default_rng(0))
    part, rest = decompose(matrices, columns, weights).resampled_progress()
    for draw in range(5):
        rows = np.repeat(np.arange(ROWS), weights[:, draw].astype(int))
        expected_part, expected_rest, _ = naive(matrices, columns[:, 0], rows)
        np.testing.assert_allclose(part[draw], expected_part, atol=2e-5)
        np.testing.assert_allclose(rest[draw], expected_rest, atol=2e-5)


def test_a_straight_line_moves_every_part_alike():
    run = straight_line(rows=ROWS, dims=DIMS)
    got = decompose(run.matrices, labellings(5)).progress()
    clock = (run.steps / run.steps[-1]) ** 0.7
    np.testing.assert_allclose(got.part, np.tile(clock, (5, 1)), atol=1e-5)
    np.testing.assert_allclose(got.rest, np.tile(clock, (5, 1)), atol=1e-5)


def test_planted_parts_come_back():
    run, y = planted_run(frequency_middle=20, rest_middle=40)
    got = decompose(run.matrices, unit_labelling(y)[:, None]).progress()
    assert np.interp(0.5, got.part[0], run.steps) == pytest.approx(20, abs=0.5)
    assert np.interp(0.5, got.rest[0], run.steps) == pytest.approx(39.5, abs=0.5)


@pytest.mark.parametrize("change", ["scale", "rotation", "shift of all rows", "drift of all rows"])
def test_is_invariant_to(change):
    matrices, columns = wandering(), labellings(2)
    rng = np.random.default_rng(3)
    moved = {
        "scale": 0.01 * matrices,
        "rotation": matrices @ np.linalg.qr(rng.standard_normal((DIMS, DIMS)))[0],
        "shift of all rows": matrices + rng.standard_normal(DIMS),
        "drift of all rows": matrices + 5.0 * rng.standard_normal((RECORDS, 1, DIMS)),
    }[change]
    before, after = decompose(matrices, columns).progress(), decompose(moved, columns).progress()
    np.testing.assert_allclose(after.part, before.part, atol=5e-5)
    np.testing.assert_allclose(after.rest, before.rest, atol=5e-5)


def test_a_part_that_does_not_change_has_no_progress():
    columns = labellings(1)
    rng = np.random.default_rng(0)
    along = np.outer(columns[:, 0], rng.standard_normal(DIMS))
    other = rng.standard_normal((ROWS, DIMS))
    other -= other.mean(axis=0)
    other -= np.outer(columns[:, 0], columns[:, 0] @ other)
    clock = np.linspace(0.0, 1.0, RECORDS)[:, None, None]
    alone = decompose(clock * along, columns).progress()
    assert np.isfinite(alone.part).all()
    assert np.isnan(alone.rest).all()
    without = decompose(clock * other, columns).progress()
    assert np.isnan(without.part).all()
    assert np.isfinite(without.rest).all()
