"""The two trajectories with known answers, run through the same code as the run itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from trainhooks.convergence.decomposition import Decomposition
from trainhooks.convergence.labellings import unit_labelling
from trainhooks.convergence.lead import Onsets, percentiles
from trainhooks.convergence.onset import Onset, onset
from trainhooks.convergence.trajectory import StraightLine, Trajectory, random_walk

WALK_ROWS, WALK_DIMS, WALK_LABELLINGS = 512, 32, 99


@dataclass(frozen=True)
class WalkReference:
    """A random walk on the run's own steps, at one q.

    `distance` is the onset of the distance covered, 1 - |E_t - E_T| / |E_T - E_0|: at 0.75 of the run for q = 0.5
    where the records are dense. `low`, `median` and `high` are the 5th, 50th and 95th percentile of the lead of
    random labellings of its rows.
    """

    distance: Onset
    low: float
    median: float
    high: float


def decompose(
    trajectory: Trajectory, *, labellings: Float[np.ndarray, "row labelling"]
) -> tuple[Onsets, Float[np.ndarray, "record"]]:
    """Onsets of every labelling over a whole trajectory, and the relative distance to its end at each record."""
    sums = Decomposition(trajectory[0], trajectory[len(trajectory) - 1], labellings=labellings)
    for index in range(len(trajectory)):
        sums.add(trajectory[index])
    progress = sums.progress()
    return Onsets(trajectory.steps, progress.part, progress.rest), sums.distance


def straight_line_leads(
    line: StraightLine, *, labelling: Float[np.ndarray, "row"], q: tuple[float, ...]
) -> Mapping[float, float]:
    """The straight line's lead at each q: 1 up to rounding, whatever the labelling."""
    onsets, _ = decompose(line, labellings=labelling[:, None])
    leads = {}
    for share in q:
        part, rest = onsets.of(0, q=share)
        leads[share] = rest.step / part.step
    return leads


def walk_references(
    steps: Int[np.ndarray, "record"], *, q: tuple[float, ...], seed: int
) -> Mapping[float, WalkReference]:
    """A random walk of 512 rows and 32 dimensions on `steps`, with 99 random labellings, at each q."""
    walk = random_walk(steps, rows=WALK_ROWS, dims=WALK_DIMS, seed=seed)
    noise = np.random.default_rng([seed, 1]).standard_normal((WALK_ROWS, WALK_LABELLINGS))
    labellings = np.stack([unit_labelling(column) for column in noise.T], axis=1)
    onsets, distance = decompose(walk, labellings=labellings)
    references = {}
    for share in q:
        pairs = onsets.pairs(q=share)
        covered = onset(steps, 1.0 - distance, q=share)
        references[share] = WalkReference(covered, *percentiles(pairs[:, 1] / pairs[:, 0], (5.0, 50.0, 95.0)))
    return references
