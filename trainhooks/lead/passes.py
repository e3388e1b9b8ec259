"""The passes over a run's matrices: the ends first, as the labellings depend on them, then every record."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from trainhooks.lead.figure import FOLDS, Picture, draw_picture, heldout_correlation
from trainhooks.lead.lead_sums import End, LeadAccumulator, LeadSums, cut_index, gathered
from trainhooks.lead.trajectory import FARTHEST, StraightLine, Trajectory, matrices, thinned

PICTURE_RECORDS = 24


def read_run(
    trajectory: Trajectory,
    y: Float[np.ndarray, "vocab"],
    *,
    mask: Bool[np.ndarray, "vocab"],
    q: tuple[float, ...],
    draws: int,
    seed: int,
    resamples: int,
    max_records: int | None,
    with_picture: bool = True,
) -> tuple[LeadSums, Picture | None]:
    """Read the last record, the first, that at 3/4, then all in order; see `analyze_run` for settings and errors."""
    kept = thinned(np.asarray(trajectory.steps), limit=max_records or len(trajectory))
    steps = np.asarray(trajectory.steps)[kept]
    targets, folds = np.asarray(y[mask], dtype=np.float64), np.flatnonzero(mask) % FOLDS
    last = next(matrices(trajectory, kept[-1:], mask=mask))
    first = next(matrices(trajectory, kept[:1], mask=mask))
    farthest = FARTHEST * max(float(np.abs(first).max()), float(np.abs(last).max()))
    end = cut_index(steps)
    cut = None if end is None else next(matrices(trajectory, kept[end : end + 1], mask=mask, farthest=farthest))
    reader = LeadAccumulator(first, last, cut, targets=targets, draws=draws, seed=seed, resamples=resamples)
    ends: dict[int, End] = {0: "first", **({} if end is None else {end: "cut"}), len(steps) - 1: "last"}
    drawn = thinned(steps, limit=PICTURE_RECORDS) if with_picture else np.arange(0)
    in_picture, correlations, records = set(drawn.tolist()), [], []
    for position, matrix in enumerate(matrices(trajectory, kept, mask=mask, farthest=farthest)):
        within_cut = end is not None and position <= end
        records.append(reader.measure(matrix, within_cut=within_cut, end=ends.get(position)))
        if position in in_picture:
            correlations.append(heldout_correlation(matrix, targets, folds=folds))
    reading = gathered(steps, records, columns=reader.columns, dims=reader.dims, correlation=reader.correlation)
    if not with_picture:
        return reading, None
    picture = _picture(reading, drawn, np.array(correlations), ends=(first, last), targets=targets, folds=folds, q=q)
    return reading, picture


def _picture(
    reading: LeadSums,
    drawn: Int[np.ndarray, "drawn"],
    correlations: Float[np.ndarray, "drawn"],
    *,
    ends: tuple[np.ndarray, np.ndarray],
    targets: np.ndarray,
    folds: np.ndarray,
    q: tuple[float, ...],
) -> Picture:
    """The picture, with the straight line between the ends that has the run's own distance at each record drawn."""
    steps, distance = reading.steps[drawn], reading.products.distance[drawn]
    line = StraightLine(*ends, steps=steps, progress=1.0 - distance)
    return draw_picture(
        steps, distance=distance, correlation=correlations, line=line, targets=targets, folds=folds, q=q
    )
