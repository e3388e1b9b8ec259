"""The lead: how much earlier the frequency part of the change is made than the rest, and the draws it must beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int

from trainhooks.convergence.decomposition import Progress
from trainhooks.convergence.labellings import (
    SingularBasis,
    matched_labellings,
    permuted_labellings,
    sign_flipped_labellings,
)
from trainhooks.convergence.onset import NO_ONSET, Onset, crossing, isotonic, settled_from

MATCHED, SIGN_FLIPS, PERMUTATIONS = "matched labellings", "sign flips", "permutations"
BIN_DRAWS = 19
DIRECTION_THRESHOLD = 0.9
# leads that differ by less are equal in float32: a straight line's must not beat its twins by rounding
TIE = 1e-6


@dataclass(frozen=True)
class Draws:
    """Column 0 of `labellings` is the targets'; `groups` names the columns of each null, `bins` of each bin count."""

    labellings: Float[np.ndarray, "row labelling"]
    groups: Mapping[str, slice]
    bins: Mapping[int, slice]


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
class Lead:
    """The lead at share q: onset of the rest / onset of the frequency part; above 1 where frequency comes first.

    `lead` (and every p) is NaN where one of the two onsets is not found. Draws are never asked whether their change
    is above noise, only the observed labelling is: that can only make the test more careful.
    """

    q: float
    frequency: Onset
    rest: Onset
    lead: float
    interval: Interval
    frequency_interval: Interval
    rest_interval: Interval
    nulls: Mapping[str, NullSummary]
    coarse_to_fine: tuple[BinLead, ...]

    @property
    def same_bracket(self) -> bool:
        """Whether both onsets lie between the same two records: the lead's size then rests on interpolation."""
        return bool(np.isfinite(self.lead)) and self.frequency.low == self.rest.low


@dataclass(frozen=True)
class Direction:
    """The step from which on cos(b(t), b(T)) stays above `threshold`, and the same for the draws (p: as early)."""

    threshold: float
    step: float
    nulls: Mapping[str, NullSummary]


def bin_counts(rows: int) -> list[int]:
    """Powers of 4 from 4 on that leave four rows or more to a bin."""
    return [4**k for k in range(1, 9) if 4 ** (k + 1) <= rows]


def draw_labellings(
    labelling: Float[np.ndarray, "row"],
    *,
    change: Float[np.ndarray, "row dim"],
    basis: SingularBasis,
    draws: int,
    seed: int,
) -> Draws:
    """The targets' labelling and all its nulls as columns: matched, sign flips, permutations, within bins of id.

    `change` is the whole centred change, `basis` its singular basis. The same seed gives the same draws.
    """
    rng = np.random.default_rng(seed)
    leading = leading_left_vector(change, basis=basis)
    flips = sign_flipped_labellings(labelling, change=change, basis=basis, draws=draws, rng=rng)
    parts = [
        labelling[:, None],
        matched_labellings(labelling, leading=leading, draws=draws, rng=rng),
        flips,
        permuted_labellings(labelling, draws=draws, rng=rng),
    ]
    counts = bin_counts(len(labelling))
    parts += [permuted_labellings(labelling, draws=BIN_DRAWS, rng=rng, bins=count) for count in counts]
    ends = np.cumsum([part.shape[1] for part in parts]).tolist()
    spans = [slice(start, end) for start, end in pairwise(ends)]
    groups = dict(zip((MATCHED, SIGN_FLIPS, PERMUTATIONS), spans, strict=False))
    together = np.concatenate([part.astype(np.float32) for part in parts], axis=1)
    return Draws(together, groups, dict(zip(counts, spans[3:], strict=True)))


def leading_left_vector(change: Float[np.ndarray, "row dim"], *, basis: SingularBasis) -> Float[np.ndarray, "row"]:
    """u_0: the rows' coordinates along the main direction of change, centred, at norm 1 (float64)."""
    vector = change.astype(np.float64) @ basis.right[:, 0]
    vector -= vector.mean()
    return vector / np.linalg.norm(vector)


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
    """Onsets of many labellings' parts and rests at any q; the isotonic fits are made once."""

    def __init__(
        self,
        steps: Int[np.ndarray, "record"],
        part: Float[np.ndarray, "labelling record"],
        rest: Float[np.ndarray, "labelling record"],
    ) -> None:
        self.steps = steps
        self._part = [isotonic(row) for row in part]
        self._rest = [isotonic(row) for row in rest]

    def of(self, labelling: int, *, q: float) -> tuple[Onset, Onset]:
        """Onset of one labelling's part and of its rest."""
        part, rest = self._part[labelling], self._rest[labelling]
        return crossing(self.steps, part, q=q), crossing(self.steps, rest, q=q)

    def pairs(self, *, q: float) -> Float[np.ndarray, "labelling 2"]:
        """Onset steps of part and rest of every labelling; NaN where not found."""
        both = [self.of(index, q=q) for index in range(len(self._part))]
        return np.array([(part.step, rest.step) for part, rest in both]).reshape(-1, 2)


def lead_at(q: float, *, onsets: Onsets, draws: Draws, resampled: Onsets | None, above_noise: bool) -> Lead:
    """The lead at q with its nulls and interval; `above_noise` False makes the frequency onset "none"."""
    steps = onsets.pairs(q=q)
    leads = steps[:, 1] / steps[:, 0]
    frequency, rest = onsets.of(0, q=q)
    if not above_noise:
        frequency = NO_ONSET
    observed = float(rest.step / frequency.step)
    samples = np.empty((0, 2)) if resampled is None or np.isnan(observed) else resampled.pairs(q=q)
    bins = [BinLead(count, *percentiles(leads[span], (5.0, 50.0, 95.0))) for count, span in draws.bins.items()]
    return Lead(
        q=q,
        frequency=frequency,
        rest=rest,
        lead=observed,
        interval=_interval(samples[:, 1] / samples[:, 0]),
        frequency_interval=_interval(samples[:, 0]),
        rest_interval=_interval(samples[:, 1]),
        nulls={name: summary(observed, leads[span]) for name, span in draws.groups.items()},
        coarse_to_fine=tuple(bins),
    )


def _interval(samples: np.ndarray) -> Interval:
    return Interval(*percentiles(samples, (2.5, 97.5)))


def direction(steps: Int[np.ndarray, "record"], *, progress: Progress, draws: Draws) -> Direction:
    """From where on the first labelling's direction b(t) is its final one, beside the same step of every draw."""
    from_step = np.array([settled_from(steps, row, above=DIRECTION_THRESHOLD) for row in progress.cosine])
    nulls = {name: summary(from_step[0], from_step[span], smaller=True) for name, span in draws.groups.items()}
    return Direction(DIRECTION_THRESHOLD, float(from_step[0]), nulls)
