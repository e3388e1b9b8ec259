"""The two passes over a run's matrices: the ends first, as the labellings depend on them, then every record."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from trainhooks.convergence.decomposition import Decomposition, Progress, centred_change
from trainhooks.convergence.labellings import resampling_weights, singular_basis, unit_labelling
from trainhooks.convergence.lead import Draws, Onsets, draw_labellings, leading_left_vector
from trainhooks.convergence.picture import FOLDS, heldout_correlation
from trainhooks.convergence.trajectory import FARTHEST, StraightLine, Trajectory, matrices, thinned, unit_scale

PICTURE_RECORDS = 24


@dataclass(frozen=True)
class Reading:
    """What is kept of the matrices: the two ends, the products' progress, and the picture's correlations.

    Matrices are in units of `unit_scale`, on which no figure depends. `steps` are those of the records used; `drawn`
    indexes the at most 24 of them that the picture shows, `correlations` holds the probe's there. `targets`, `folds`
    (id mod 5) and `labelling` are over the masked rows; `correlation` is the absolute correlation of the targets with
    the leading direction of change.
    """

    steps: Int[np.ndarray, "record"]
    first: Float[np.ndarray, "row dim"]
    last: Float[np.ndarray, "row dim"]
    targets: Float[np.ndarray, "row"]
    folds: Int[np.ndarray, "row"]
    labelling: Float[np.ndarray, "row"]
    draws: Draws
    progress: Progress
    resampled: Onsets | None
    distance: Float[np.ndarray, "record"]
    correlation: float
    drawn: Int[np.ndarray, "drawn"]
    correlations: Float[np.ndarray, "drawn"]

    @property
    def line(self) -> StraightLine:
        """The straight line between the ends that has the run's own distance at each record of the picture."""
        progress = 1.0 - self.distance[self.drawn]
        return StraightLine(self.first, self.last, steps=self.steps[self.drawn], progress=progress)


def read_run(
    trajectory: Trajectory,
    y: Float[np.ndarray, "vocab"],
    *,
    mask: Bool[np.ndarray, "vocab"],
    draws: int,
    seed: int,
    resamples: int,
    max_records: int | None,
) -> Reading:
    """Read the last record, the first, then all in order; see `analyze_run` for the settings and errors."""
    kept = thinned(np.asarray(trajectory.steps), limit=max_records or len(trajectory))
    steps = np.asarray(trajectory.steps)[kept]
    drawn = thinned(steps, limit=PICTURE_RECORDS)
    targets, folds = np.asarray(y[mask], dtype=np.float64), np.flatnonzero(mask) % FOLDS
    labelling = unit_labelling(targets)
    last = next(matrices(trajectory, kept[-1:], mask=mask))
    first = next(matrices(trajectory, kept[:1], mask=mask))
    scale = unit_scale(first, last)
    farthest = FARTHEST * max(float(np.abs(first).max()), float(np.abs(last).max()))
    first, last = first * scale, last * scale
    change = centred_change(last, first=first)
    basis = singular_basis(change)
    labellings = draw_labellings(labelling, change=change, basis=basis, draws=draws, seed=seed)
    rng = np.random.default_rng([seed, 1])
    weights = resampling_weights(len(targets), draws=resamples, rng=rng) if resamples else None
    sums = Decomposition(first, last, labellings=labellings.labellings, weights=weights)
    in_picture, correlations = set(drawn.tolist()), []
    for position, matrix in enumerate(matrices(trajectory, kept, mask=mask, farthest=farthest)):
        sums.add(matrix * scale)
        if position in in_picture:
            correlations.append(heldout_correlation(matrix, targets, folds=folds))
    return Reading(
        steps=steps,
        first=first,
        last=last,
        targets=targets,
        folds=folds,
        labelling=labelling,
        draws=labellings,
        progress=sums.progress(),
        resampled=Onsets(steps, *sums.resampled_progress()) if resamples else None,
        distance=sums.distance,
        correlation=abs(float(leading_left_vector(change, basis=basis) @ labelling)),
        drawn=drawn,
        correlations=np.array(correlations),
    )
