"""When a series gets where it is going: the onset at a share q of its change, with the records that bracket it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import isotonic_regression

Status = Literal["found", "none", "before the first record"]


@dataclass(frozen=True)
class Onset:
    """Where a series crosses a share of its change: `step` (fractional), inside the records `low` and `high`.

    `status` is "found"; "none" where the series does not change by more than noise (all three are NaN); or
    "before the first record" where the crossing is not in view: it lies at or before step `high`, `low` is 0 and
    `step` is NaN.
    """

    step: float
    low: float
    high: float
    status: Status


NO_ONSET = Onset(float("nan"), float("nan"), float("nan"), "none")


@dataclass(frozen=True)
class Series:
    """A recorded series: `values` at `steps`; NaN values are left out (off-schedule records).

    `error` is the standard error of the difference of its ends if nothing had changed, in the unit of `values`:
    a change of less than three of them has no onset. 0, the default, lets any change count.

    Raises ValueError where steps and values differ in number.
    """

    steps: Int[np.ndarray, "step"]
    values: Float[np.ndarray, "record"]
    error: float = 0.0

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.values):
            raise ValueError(f"got {len(self.steps)} steps and {len(self.values)} values; give one value a step.")

    def finite(self) -> tuple[Int[np.ndarray, "finite"], Float[np.ndarray, "finite"]]:
        """Steps and values (float64) of the records that hold a finite number."""
        keep = np.isfinite(self.values)
        return np.asarray(self.steps)[keep], np.asarray(self.values, dtype=np.float64)[keep]


def check_share(q: float) -> None:
    """Raise ValueError unless 0 < q < 1."""
    if not 0.0 < q < 1.0:
        raise ValueError(f"an onset's share q must lie between 0 and 1, got {q}; use 0.5 for half of the change.")


def check_steps(steps: Int[np.ndarray, "record"]) -> None:
    """Raise ValueError unless `steps` are whole numbers >= 0 that increase strictly."""
    if len(steps) < 2 or steps[0] < 0 or np.any(np.diff(steps) <= 0):
        raise ValueError(
            f"a series needs two or more records at steps >= 0 that increase strictly, got {steps[:8].tolist()}; "
            "sort the records and leave out repeated steps."
        )


def crossing(
    steps: Int[np.ndarray, "record"],
    fitted: Float[np.ndarray, "record"],
    *,
    q: float,
) -> Onset:
    """The onset at share q of a progress that already increases (0 at the start of the run, 1 at its end).

    Linear interpolation in log(1 + step) between the two records around q. "before the first record" where the
    first record is at q already, or where the series starts after step 0 and crosses q at once. "none" where a
    value is not finite or q is never reached.
    """
    if not np.isfinite(fitted).all() or fitted[-1] < q:
        return NO_ONSET
    after = int(np.argmax(fitted >= q))
    if after == 0 or (after == 1 and steps[0] > 0):
        return Onset(float("nan"), 0.0, float(steps[after]), "before the first record")
    left, right = fitted[after - 1], fitted[after]
    start, stop = np.log1p(steps[after - 1]), np.log1p(steps[after])
    step = np.expm1(start + (q - left) / (right - left) * (stop - start))
    return Onset(float(step), float(steps[after - 1]), float(steps[after]), "found")


def crossing_steps(
    steps: Int[np.ndarray, "record"], progress: Float[np.ndarray, "series record"], *, q: float
) -> Float[np.ndarray, "series"]:
    """`crossing(steps, isotonic(row), q=q).step` of many series at once, without fitting them.

    An isotonic fit reaches q first where the running sum of (progress - q) is lowest; beside that record its values are
    the largest mean that ends before it and the smallest that starts at it (the min-max formulas).
    """
    count = progress.shape[1]
    at = np.arange(count + 1)
    sums = np.zeros((len(progress), count + 1))
    np.cumsum(progress, axis=1, out=sums[:, 1:])
    after = np.argmin(sums - q * at, axis=1)
    hidden = (after == 0) | (after == count) | ~np.isfinite(sums[:, -1])
    if steps[0] > 0:
        hidden |= after == 1
    inner = np.clip(after, 1, count - 1)[:, None]
    here = np.take_along_axis(sums, inner, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        before = np.where(at < inner, (here - sums) / (inner - at), -np.inf).max(axis=1)
        behind = np.where(at > inner, (sums - here) / (at - inner), np.inf).min(axis=1)
        logs, inner = np.log1p(steps), inner[:, 0]
        step = np.expm1(logs[inner - 1] + (q - before) / (behind - before) * (logs[inner] - logs[inner - 1]))
    return np.where(hidden, np.nan, step)


def isotonic(progress: Float[np.ndarray, "record"]) -> Float[np.ndarray, "record"]:
    """The increasing series nearest to `progress` in least squares; all NaN where one value is not finite."""
    if not np.isfinite(progress).all():
        return np.full(progress.shape, np.nan)
    fitted: np.ndarray = isotonic_regression(np.asarray(progress, dtype=np.float64)).x
    return fitted


def onset(
    steps: Int[np.ndarray, "record"],
    values: Float[np.ndarray, "record"],
    *,
    q: float = 0.5,
    start: float | None = None,
    error: float = 0.0,
) -> Onset:
    """The step at which a series has made the share q of its change, rising or falling.

    Progress (v - start) / (v_last - start) goes through isotonic regression and is interpolated in log(1 + step).
    `start` is the value of the untrained model where it is known better than by the first record (the default).
    "none" where the change is zero, not finite, or below three times `error` (see `Series`).

    Raises ValueError for q outside (0, 1) and for steps that do not increase.
    """
    check_share(q)
    check_steps(steps)
    first = float(values[0]) if start is None else start
    change = float(values[-1]) - first
    if not np.isfinite(change) or change == 0.0 or abs(change) < 3.0 * error:
        return NO_ONSET
    progress = (np.asarray(values, dtype=np.float64) - first) / change
    return crossing(steps, isotonic(progress), q=q)


def series_onset(series: Series, *, q: float) -> Onset:
    """`onset` of a recorded series over its finite values; "none" where fewer than two are finite."""
    steps, values = series.finite()
    if len(steps) < 2:
        return NO_ONSET
    return onset(steps, values, q=q, error=series.error)


def settled_from(
    steps: Int[np.ndarray, "record"],
    values: Float[np.ndarray, "record"],
    *,
    above: float,
) -> float:
    """The first step from which on every value is above `above`; NaN where the last value is not."""
    below = np.flatnonzero(~(np.asarray(values) > above))
    first = 0 if len(below) == 0 else int(below[-1]) + 1
    return float(steps[first]) if first < len(steps) else float("nan")
