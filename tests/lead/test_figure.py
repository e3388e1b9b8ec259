import numpy as np
import pytest
from scipy.stats import spearmanr

from trainhooks.lead import StraightLine, onset
from trainhooks.lead.figure import draw_picture, heldout_correlation

ROWS, DIMS = 103, 6
FOLDS = np.arange(ROWS) % 5


def data(seed=0):
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((ROWS, DIMS)) + 2.0
    return matrix.astype(np.float32), matrix[:, 0] - matrix[:, 1] + rng.standard_normal(ROWS)


def naive(matrix, targets):
    scores = []
    design = np.column_stack([np.ones(ROWS), matrix.astype(np.float64)])
    for fold in range(5):
        train, test = fold != FOLDS, fold == FOLDS
        slope = np.linalg.lstsq(design[train], targets[train], rcond=None)[0]
        scores.append(spearmanr(design[test] @ slope, targets[test]).statistic)
    return np.mean(scores)


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_a_fit_a_fold(seed):
    matrix, targets = data(seed)
    assert heldout_correlation(matrix, targets, folds=FOLDS) == pytest.approx(naive(matrix, targets), abs=1e-9)


def test_known_answers():
    matrix, _ = data()
    assert heldout_correlation(matrix, matrix[:, 2].astype(np.float64), folds=FOLDS) == pytest.approx(1.0)
    assert heldout_correlation(np.ones_like(matrix), data()[1], folds=FOLDS) == 0.0
    noise = np.random.default_rng(9).standard_normal(ROWS)
    assert abs(heldout_correlation(matrix, noise, folds=FOLDS)) < 0.4


def test_is_invariant_to_rotation_shift_and_unit():
    matrix, targets = data()
    turned = 5.0 * matrix @ np.linalg.qr(np.random.default_rng(1).standard_normal((DIMS, DIMS)))[0] - 1.0
    expected = heldout_correlation(matrix, targets, folds=FOLDS)
    got = heldout_correlation(turned.astype(np.float32), 3.0 - 2.0 * targets, folds=FOLDS)
    assert got == pytest.approx(expected, abs=0.01)


def test_more_dimensions_than_rows_still_give_a_number():
    wide = np.random.default_rng(0).standard_normal((ROWS, 2 * ROWS)).astype(np.float32)
    got = heldout_correlation(wide, data()[1], folds=FOLDS)
    assert -1.0 <= got <= 1.0


def test_a_straight_line_leads_in_the_picture():
    rng = np.random.default_rng(0)
    targets = rng.standard_normal(400)
    first, last = rng.standard_normal((2, 400, 5)).astype(np.float32)
    last[:, 0] += 2.0 * targets.astype(np.float32)
    steps = np.arange(21)
    progress = steps / 20.0
    line = StraightLine(first, last, steps=steps, progress=progress)
    folds = np.arange(400) % 5
    correlation = np.array([heldout_correlation(line[i], targets, folds=folds) for i in range(21)])
    picture = draw_picture(
        steps,
        distance=1.0 - progress,
        correlation=correlation,
        line=line,
        targets=targets,
        folds=folds,
        q=(0.5, 0.9),
    )
    np.testing.assert_array_equal(picture.correlation, picture.line_correlation)
    for share, got in picture.onsets.items():
        assert got.distance == onset(steps, progress, q=share)
        assert got.ratio == got.line_ratio > 1.2
