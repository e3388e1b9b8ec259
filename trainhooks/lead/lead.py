"""The lead: how much earlier the frequency part of the change is made than the rest, and the draws it must beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from trainhooks.lead.decomposition import Progress
from trainhooks.lead.draws import NULLS, Columns, Twins
from trainhooks.lead.onset import NO_ONSET, Onset, crossing, crossing_steps, isotonic, settled_from

DIRECTION_THRESHOLD = 0.9
# leads that differ by less are equal in float32: a straight line's must not beat its twins by rounding
TIE = 1e-6


@dataclass(frozen=True)
class NullSummary:
    """What the draws of one null gave: 5th, 50th and 95th percentile, and the observed value's p against them.

    p = (1 + #{null at least as extreme}) / (1 + draws). A draw whose value is undefined (its onset lies before the
    first record, or its part of the change is zero) counts as at least as extreme, so that it can only weaken a
    claim; `undefined` counts them. p is NaN where the observed value is.
    """

    draws: int
    low: float
    median: float
    high: float
    p: float
    undefined: int


@dataclass(frozen=True)
class BinLead:
    """The leads of labellings permuted only within `bins` runs of neighbouring ids: 5th, 50th, 95th percentile."""

    bins: int
    low: float
    median: float
    high: float


@dataclass(frozen=True)
class Interval:
    """The central 95% over bootstrap samples of the tokens (NaN without any): token sampling, one run."""

    low: float
    high: float


@dataclass(frozen=True)
class Excess:
    """The effect: the lead over the median of the null that it beats least (`null`), 1 where frequency is as any.

    `interval` is the lead over the central 95% of that null's draws. Which tokens were sampled moves the lead and the
    draws' leads together, so that uncertainty is the lead's own.
    """

    null: str
    value: float
    interval: Interval


@dataclass(frozen=True)
class Check:
    """The same lead measured another way: its value and its largest p over the nulls (NaN where undefined)."""

    lead: float
    p: float


@dataclass(frozen=True)
class Lead:
    """The lead at share q: onset of the rest / onset of the frequency part; above 1 where frequency comes first.

    `p` is the largest over the nulls that count (`NULLS`); permuted targets are among `nulls` to be seen. `lead` (and
    every p) is NaN where one of the two onsets is not found. Draws are never asked whether their change is above noise,
    only the observed labelling is: that can only make the test more careful. `rank` and `cut` are the checks with the
    targets' ranks in place of their values, and with the run cut at 3/4 (at the record of `cut_step`).
    """

    q: float
    frequency: Onset
    rest: Onset
    lead: float
    interval: Interval
    frequency_interval: Interval
    rest_interval: Interval
    nulls: Mapping[str, NullSummary]
    p: float
    excess: Excess
    rank: Check
    cut: Check
    cut_step: float
    coarse_to_fine: tuple[BinLead, ...]

    @property
    def same_bracket(self) -> bool:
        """Whether both onsets lie between the same two records: which came first then rests on interpolation."""
        return bool(np.isfinite(self.lead)) and self.frequency.low == self.rest.low


@dataclass(frozen=True)
class Direction:
    """The step from which on cos(b(t), b(T)) stays above `threshold`, and the same for the draws (p: as early)."""

    threshold: float
    step: float
    nulls: Mapping[str, NullSummary]


def change_over_noise(size: Float[np.ndarray, "labelling"], *, null: slice) -> float:
    """How many standard deviations the first labelling's |b(T)| lies above that of the labellings in `null`."""
    return float((size[0] - size[null].mean()) / size[null].std(ddof=1))


def p_value(observed: float, null: Float[np.ndarray, "draw"], *, smaller: bool = False) -> float:
    """(1 + #{null >= observed}) / (1 + draws), or <= with `smaller`; NaN where the observed value is not finite.

    Undefined draws and draws within one millionth of the observed value count as at least as extreme.
    """
    if not np.isfinite(observed):
        return float("nan")
    extreme = null <= observed * (1 + TIE) if smaller else null >= observed * (1 - TIE)
    return float((1 + np.count_nonzero(extreme | np.isnan(null))) / (1 + len(null)))


def summary(observed: float, null: Float[np.ndarray, "draw"], *, smaller: bool = False) -> NullSummary:
    """Percentiles of the null's defined values and the observed value's p."""
    low, median, high = percentiles(null, (5.0, 50.0, 95.0))
    undefined = int(np.count_nonzero(np.isnan(null)))
    return NullSummary(len(null), low, median, high, p_value(observed, null, smaller=smaller), undefined)


def percentiles(values: Float[np.ndarray, "draw"], percents: Sequence[float]) -> list[float]:
    """Percentiles of the values that are not NaN; NaN where none is left."""
    defined = values[~np.isnan(values)]
    if len(defined) == 0:
        return [float("nan")] * len(percents)
    return [float(value) for value in np.percentile(defined, percents)]


class Onsets:
    """Onsets of many labellings' parts and rests at any q."""

    def __init__(
        self,
        steps: Int[np.ndarray, "record"],
        part: Float[np.ndarray, "labelling record"],
        rest: Float[np.ndarray, "labelling record"],
    ) -> None:
        self.steps, self._part, self._rest = steps, part, rest

    def of(self, labelling: int, *, q: float) -> tuple[Onset, Onset]:
        """Onset of one labelling's part and of its rest."""
        part, rest = isotonic(self._part[labelling]), isotonic(self._rest[labelling])
        return crossing(self.steps, part, q=q), crossing(self.steps, rest, q=q)

    def pairs(self, *, q: float) -> Float[np.ndarray, "labelling 2"]:
        """Onset steps of part and rest of every labelling; NaN where not found."""
        both = [crossing_steps(self.steps, progress, q=q) for progress in (self._part, self._rest)]
        return np.stack(both, axis=1)

    def leads(self, *, q: float) -> Float[np.ndarray, "labelling"]:
        """Onset of the rest / onset of the part of every labelling; NaN where one is not found."""
        pairs = self.pairs(q=q)
        leads: np.ndarray = pairs[:, 1] / pairs[:, 0]
        return leads


@dataclass(frozen=True)
class CutRun:
    """The run up to the record at `step`, about 3/4 of it: onsets of the targets and their twins."""

    step: float
    onsets: Onsets


def lead_at(
    q: float,
    *,
    onsets: Onsets,
    columns: Columns,
    resampled: Onsets | None,
    cut: CutRun | None,
    above_noise: bool,
) -> Lead:
    """The lead at q with its nulls, intervals and checks; `above_noise` False makes the frequency onset "none"."""
    leads = onsets.leads(q=q)
    frequency, rest = onsets.of(0, q=q)
    if not above_noise:
        frequency = NO_ONSET
    observed = float(rest.step / frequency.step)
    samples = np.empty((0, 2)) if resampled is None or np.isnan(observed) else resampled.pairs(q=q)
    nulls = {name: summary(observed, leads[span]) for name, span in columns.groups.items()}
    sampled = samples[:, 1] / samples[:, 0]
    bins = [BinLead(count, *percentiles(leads[span], (5.0, 50.0, 95.0))) for count, span in columns.bins.items()]
    return Lead(
        q=q,
        frequency=frequency,
        rest=rest,
        lead=observed,
        interval=_interval(sampled),
        frequency_interval=_interval(samples[:, 0]),
        rest_interval=_interval(samples[:, 1]),
        nulls=nulls,
        p=max(nulls[name].p for name in NULLS),
        excess=excess(observed, {name: leads[span] for name, span in columns.targets.groups.items()}),
        rank=check(leads, twins=columns.ranks),
        cut=Check(float("nan"), float("nan")) if cut is None else check(cut.onsets.leads(q=q), twins=columns.targets),
        cut_step=float("nan") if cut is None else cut.step,
        coarse_to_fine=tuple(bins),
    )


def check(leads: Float[np.ndarray, "labelling"], *, twins: Twins) -> Check:
    """A labelling's lead and its largest p over the nulls."""
    observed = float(leads[twins.column])
    return Check(observed, max(p_value(observed, leads[span]) for span in twins.groups.values()))


def excess(observed: float, nulls: Mapping[str, Float[np.ndarray, "draw"]]) -> Excess:
    """Over the null whose interval reaches lowest, of the leads of each null's draws."""
    over = {name: _interval(observed / null) for name, null in nulls.items()}
    least = min(nulls, key=lambda name: (np.nan_to_num(over[name].low), -p_value(observed, nulls[name])))
    return Excess(least, observed / percentiles(nulls[least], (50.0,))[0], over[least])


def _interval(samples: np.ndarray) -> Interval:
    return Interval(*percentiles(samples, (2.5, 97.5)))


def direction(steps: Int[np.ndarray, "record"], *, progress: Progress, columns: Columns) -> Direction:
    """From where on the first labelling's direction b(t) is its final one, beside the same step of every draw."""
    from_step = np.array([settled_from(steps, row, above=DIRECTION_THRESHOLD) for row in progress.cosine])
    nulls = {name: summary(from_step[0], from_step[span], smaller=True) for name, span in columns.groups.items()}
    return Direction(DIRECTION_THRESHOLD, float(from_step[0]), nulls)
