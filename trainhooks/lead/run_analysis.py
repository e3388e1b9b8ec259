"""One run from end to end: onsets, lead, nulls, references and intervals, from its trajectory and the targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from trainhooks.lead.decomposition import Products
from trainhooks.lead.draws import DRAWS
from trainhooks.lead.figure import Picture
from trainhooks.lead.lead import CutRun, Direction, Lead, Onsets, change_over_noise, direction, lead_at
from trainhooks.lead.lead_sums import RESAMPLES, LeadSums
from trainhooks.lead.learning_rate import Placement, placement_of
from trainhooks.lead.onset import Onset, Series, check_share, check_steps, series_onset
from trainhooks.lead.passes import read_run
from trainhooks.lead.reference_runs import WalkReference, straight_line_leads, walk_references
from trainhooks.lead.trajectory import Trajectory

LEAST_DRAWS = 19
LEAST_ROWS = 16
NOISE_ERRORS = 3.0


@dataclass(frozen=True)
class Curves:
    """The run over the records used.

    `frequency` and `rest` are the progress of the two parts, before isotonic regression, `cosine` is cos(b(t), b(T)),
    `distance` the relative distance to the final state, which depends on the run's length.
    """

    steps: Int[np.ndarray, "record"]
    frequency: Float[np.ndarray, "record"]
    rest: Float[np.ndarray, "record"]
    cosine: Float[np.ndarray, "record"]
    distance: Float[np.ndarray, "record"]


@dataclass(frozen=True)
class RunAnalysis:
    """Everything measured on one run. Keys of the mappings are the shares q, names of series, or names of nulls.

    `rows` are those of the mask, of `vocab` in all. `leads` has one entry a q, in the order asked for; the first is the
    one a verdict rests on. `correlation` is c, the absolute correlation of the targets with the leading direction of
    change. `change_over_noise` says by how many standard deviations the frequency part of the final change exceeds that
    of permuted targets; below 3 it has no onset. `straight_line` is that null's lead at each q (1 up to rounding).
    `placements` are the onsets' places in the learning-rate schedule (q -> "frequency", "rest"), empty where no
    learning rate was given. `picture` is None where the run's matrices were not there to draw it. `findings` are what
    an audit of the checkpoints found, `doubts` those that put in doubt that they are one run; none for a live run.
    """

    first_step: int
    last_step: int
    records_total: int
    records_used: int
    rows: int
    vocab: int
    dims: int
    draws: int
    resamples: int
    seed: int
    correlation: float
    change_over_noise: float
    leads: tuple[Lead, ...]
    direction: Direction
    straight_line: Mapping[float, float]
    random_walk: Mapping[float, WalkReference]
    picture: Picture | None
    placements: Mapping[float, Mapping[str, Placement]]
    series_onsets: Mapping[str, Mapping[float, Onset]]
    curves: Curves
    findings: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


def analyze_run(
    trajectory: Trajectory,
    y: Float[np.ndarray, "vocab"],
    *,
    mask: Bool[np.ndarray, "mask"] | None = None,
    q: Sequence[float] = (0.5, 0.9),
    draws: int = DRAWS,
    seed: int = 0,
    learning_rate: Series | None = None,
    series: Mapping[str, Series] | None = None,
    max_records: int | None = None,
    resamples: int = RESAMPLES,
    picture: bool = True,
) -> RunAnalysis:
    """Decompose a run's change into the part along the targets and the rest, and test which came first.

    `y` holds the targets of all rows (-log frequency; entries outside `mask` are never looked at). Reads the last
    record, the first and that at 3/4 of the run, then every record in order, one matrix in memory beside those.
    `draws` labellings of each null, `resamples` bootstrap samples of the tokens (0: no interval). `series` are recorded
    scalars whose onsets go beside. Without `picture`, which is no evidence, it is not computed.
    `max_records` thins a long run to that many records, evenly in log(1 + step).

    Raises ValueError for fewer than 3 records or 16 rows, fewer than 19 draws (p could not fall to 0.05), constant
    or non-finite targets, non-finite matrices, a run whose two ends are equal, and shares outside (0, 1).
    """
    shares = tuple(float(share) for share in q)
    mask = np.ones(len(y), dtype=bool) if mask is None else np.asarray(mask)
    if mask.shape != (len(y),) or mask.dtype != bool:  # whole numbers would be read as row ids
        raise ValueError(
            f"the mask has {len(mask)} entries of type {mask.dtype} and y has {len(y)}; give one boolean for each row."
        )
    _check(trajectory, mask=mask, q=shares, draws=draws, max_records=max_records)
    reading, drawn = read_run(
        trajectory,
        y,
        mask=mask,
        q=shares,
        draws=draws,
        seed=seed,
        resamples=resamples,
        max_records=max_records,
        with_picture=picture,
    )
    return analyze_reading(
        reading,
        records=len(trajectory),
        vocab=len(y),
        q=shares,
        seed=seed,
        picture=drawn,
        learning_rate=learning_rate,
        series=series,
    )


def analyze_reading(
    reading: LeadSums,
    *,
    records: int,
    vocab: int,
    q: tuple[float, ...],
    seed: int = 0,
    picture: Picture | None = None,
    learning_rate: Series | None = None,
    series: Mapping[str, Series] | None = None,
) -> RunAnalysis:
    """What `analyze_run` concludes, from a reading alone: no matrix is needed any more.

    `records` and `vocab` are those of the whole run, of which the reading may hold less.
    """
    steps, products, progress = reading.steps, reading.products, reading.products.progress()
    above = change_over_noise(progress.size, null=reading.columns.permutations)
    leads = _leads(reading, q=q, above_noise=above >= NOISE_ERRORS)
    return RunAnalysis(
        first_step=int(steps[0]),
        last_step=int(steps[-1]),
        records_total=records,
        records_used=len(steps),
        rows=reading.columns.rows,
        vocab=vocab,
        dims=reading.dims,
        draws=reading.columns.draws,
        resamples=products.resampled_inner.shape[1],
        seed=seed,
        correlation=reading.correlation,
        change_over_noise=above,
        leads=leads,
        direction=direction(steps, progress=progress, columns=reading.columns),
        straight_line=straight_line_leads(products, steps=steps, q=q),
        random_walk=walk_references(steps, q=q, seed=seed),
        picture=picture,
        placements={} if learning_rate is None else _placements(leads, learning_rate),
        series_onsets={
            name: {share: series_onset(one, q=share) for share in q} for name, one in (series or {}).items()
        },
        curves=Curves(steps, progress.part[0], progress.rest[0], progress.cosine[0], products.distance),
    )


def _leads(reading: LeadSums, *, q: tuple[float, ...], above_noise: bool) -> tuple[Lead, ...]:
    steps, products = reading.steps, reading.products
    resampled = Onsets(steps, *products.resampled_progress()) if products.resampled_inner.shape[1] else None
    return tuple(
        lead_at(
            share,
            onsets=_onsets(steps, products),
            columns=reading.columns,
            resampled=resampled,
            cut=_cut_run(reading),
            above_noise=above_noise,
        )
        for share in q
    )


def _cut_run(reading: LeadSums) -> CutRun | None:
    cut = reading.cut_products
    return None if cut is None else CutRun(float(reading.cut_step), _onsets(reading.steps[: len(cut.total)], cut))


def _onsets(steps: np.ndarray, products: Products) -> Onsets:
    progress = products.progress()
    return Onsets(steps, progress.part, progress.rest)


def _placements(leads: tuple[Lead, ...], learning_rate: Series) -> Mapping[float, Mapping[str, Placement]]:
    placed = {}
    for lead in leads:
        both = {"frequency": lead.frequency, "rest": lead.rest}
        found = {name: placement_of(one.step, learning_rate=learning_rate) for name, one in both.items()}
        placed[lead.q] = {name: one for name, one in found.items() if one is not None}
    return placed


def _check(
    trajectory: Trajectory,
    *,
    mask: np.ndarray,
    q: tuple[float, ...],
    draws: int,
    max_records: int | None,
) -> None:
    if not q:
        raise ValueError("got no share q; give at least one, such as q=(0.5,).")
    for share in q:
        check_share(share)
    if len(trajectory) < 3 or (max_records is not None and max_records < 3):
        raise ValueError(
            f"got {len(trajectory)} records and max_records={max_records}; a lead needs 3 or more records of the "
            "output embedding, since the first and the last are its ends."
        )
    check_steps(np.asarray(trajectory.steps))
    if draws < LEAST_DRAWS:
        raise ValueError(f"got draws={draws}; p cannot fall to 0.05 below {LEAST_DRAWS} draws, use 99 or more.")
    rows = int(np.count_nonzero(mask))
    if rows < LEAST_ROWS:
        raise ValueError(
            f"the mask leaves {rows} rows; a labelling and its random twins need {LEAST_ROWS} or more. "
            "Lower min_count, or check that the counts belong to this vocabulary."
        )
