"""The two trajectories with known answers, run through the same code as the run itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from trainhooks.lead.decomposition import Decomposition, Products
from trainhooks.lead.labellings import unit_labelling
from trainhooks.lead.lead import Onsets, percentiles
from trainhooks.lead.onset import Onset, onset
from trainhooks.lead.trajectory import Trajectory, random_walk

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


def decompose(trajectory: Trajectory, *, labellings: Float[np.ndarray, "row labelling"]) -> Products:
    """The products of every labelling over a whole trajectory."""
    sums = Decomposition(trajectory[0], trajectory[len(trajectory) - 1], labellings=labellings)
    return Products.stacked([sums.measure(trajectory[index]) for index in range(len(trajectory))])


def straight_line_leads(
    products: Products, *, steps: Int[np.ndarray, "record"], q: tuple[float, ...]
) -> Mapping[float, float]:
    """The lead of E_0 + pi(t) (E_T - E_0) at each q, pi the run's own distance covered: 1 up to rounding."""
    covered = 1.0 - products.distance
    line = replace(products, inner=covered[:, None] * products.inner[-1:], total=covered * products.total[-1])
    progress = line.progress()
    onsets = Onsets(steps, progress.part[:1], progress.rest[:1])
    return {share: float(onsets.leads(q=share)[0]) for share in q}


def walk_references(
    steps: Int[np.ndarray, "record"], *, q: tuple[float, ...], seed: int
) -> Mapping[float, WalkReference]:
    """A random walk of 512 rows and 32 dimensions on `steps`, with 99 random labellings, at each q."""
    walk = random_walk(steps, rows=WALK_ROWS, dims=WALK_DIMS, seed=seed)
    noise = np.random.default_rng([seed, 1]).standard_normal((WALK_ROWS, WALK_LABELLINGS))
    labellings = np.stack([unit_labelling(column) for column in noise.T], axis=1)
    products = decompose(walk, labellings=labellings)
    progress = products.progress()
    onsets = Onsets(steps, progress.part, progress.rest)
    references = {}
    for share in q:
        covered = onset(steps, 1.0 - products.distance, q=share)
        references[share] = WalkReference(covered, *percentiles(onsets.leads(q=share), (5.0, 50.0, 95.0)))
    return references
