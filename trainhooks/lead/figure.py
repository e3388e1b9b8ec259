"""The paper's picture: the probe's correlation against the distance to the final state, with the straight line in it.

It is no evidence by itself: correlation saturates and distance does not, so a straight line between the two ends
"leads" too, by as much as a run does. (Cho et al. 2025, arXiv 2406.01468, section on training dynamics.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from trainhooks.lead.onset import Onset, onset
from trainhooks.lead.ranks import mean_ranks
from trainhooks.lead.trajectory import StraightLine

FOLDS = 5
RIDGE = 1e-9


@dataclass(frozen=True)
class PictureOnsets:
    """At one share q: onsets of the correlation (run, straight line) and of the distance covered, and their ratios.

    The ratios are onset of distance / onset of correlation, NaN where one is not found.
    """

    correlation: Onset
    line_correlation: Onset
    distance: Onset
    ratio: float
    line_ratio: float


@dataclass(frozen=True)
class Picture:
    """Held-out rank correlation of the probe and relative distance to the final state, over the records drawn.

    `line_correlation` is that of the straight line between the two ends that has the run's own distance at each
    record. `onsets` has one entry a q.
    """

    steps: Int[np.ndarray, "record"]
    distance: Float[np.ndarray, "record"]
    correlation: Float[np.ndarray, "record"]
    line_correlation: Float[np.ndarray, "record"]
    onsets: Mapping[float, PictureOnsets]


def heldout_correlation(
    matrix: Float[np.ndarray, "row dim"],
    targets: Float[np.ndarray, "row"],
    *,
    folds: Int[np.ndarray, "row"],
) -> float:
    """Spearman correlation, in [-1, 1], of held-out least-squares predictions with the targets, mean over the folds.

    `folds` numbers each row's fold (id mod 5). Fitted with intercept from sums in float64; a ridge of 1e-9 of the
    mean variance leaves a full-rank fit as it is and makes a rank-deficient one least norm. A fold whose predictions
    or targets are all equal, or that has fewer than two rows, gives 0.
    """
    x = matrix.astype(np.float64) - matrix.mean(axis=0, dtype=np.float64)
    y = targets - targets.mean()
    members = [np.flatnonzero(folds == fold) for fold in range(FOLDS)]
    sums = [_sums(x[rows], y[rows]) for rows in members]
    total = [np.sum(parts, axis=0) for parts in zip(*sums, strict=True)]
    scores = []
    for rows, left_out in zip(members, sums, strict=True):
        count, mean, y_mean, gram, cross = (whole - part for whole, part in zip(total, left_out, strict=True))
        gram = gram - np.outer(mean, mean) / max(count, 1)
        cross = cross - mean * y_mean / max(count, 1)
        scores.append(_spearman(x[rows] @ _slope(gram, cross), y[rows]))
    return float(np.mean(scores))


def _sums(x: np.ndarray, y: np.ndarray) -> tuple[int, np.ndarray, float, np.ndarray, np.ndarray]:
    return len(y), x.sum(axis=0), float(y.sum()), x.T @ x, x.T @ y


def _slope(gram: np.ndarray, cross: np.ndarray) -> np.ndarray:
    ridge = RIDGE * np.trace(gram) / len(gram)
    if not ridge > 0.0:
        return np.zeros_like(cross)
    return np.linalg.solve(gram + ridge * np.eye(len(gram)), cross)


def _spearman(first: np.ndarray, second: np.ndarray) -> float:
    if len(first) < 2 or np.ptp(first) == 0.0 or np.ptp(second) == 0.0:
        return 0.0
    return float(np.corrcoef(mean_ranks(first), mean_ranks(second))[0, 1])


def draw_picture(
    steps: Int[np.ndarray, "record"],
    *,
    distance: Float[np.ndarray, "record"],
    correlation: Float[np.ndarray, "record"],
    line: StraightLine,
    targets: Float[np.ndarray, "row"],
    folds: Int[np.ndarray, "row"],
    q: tuple[float, ...],
) -> Picture:
    """Put the run's correlation and distance beside the straight line's correlation, with onsets at each q."""
    on_line = np.array([heldout_correlation(line[i], targets, folds=folds) for i in range(len(line))])
    onsets = {}
    for share in q:
        run, null = onset(steps, correlation, q=share), onset(steps, on_line, q=share)
        way = onset(steps, 1.0 - distance, q=share)
        onsets[share] = PictureOnsets(run, null, way, way.step / run.step, way.step / null.step)
    return Picture(steps, distance, correlation, on_line, onsets)
