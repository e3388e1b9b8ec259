"""The paper's dynamics figure: held-out frequency correlation above, convergence below, on one axis of steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from trainhooks.plots.series import Curve, Drawing, Panel, Scale

STEPS = {"log": "step (updates, log(1 + step))", "linear": "step (updates)"}
CORRELATION = "held-out Spearman"
DISTANCE = "relative distance to final"


def frequency_panel(curves: Sequence[Curve], *, scale: Scale = "log") -> Panel:
    """Correlations of the probe over steps, with the zero line in view."""
    low = min((float(curve.finite.min()) for curve in curves if curve.drawn), default=0.0)
    return Panel(
        "frequency", STEPS[scale], CORRELATION, tuple(curves), x_scale=scale, y_range=(min(-0.12, 1.1 * low), 1.02)
    )


def convergence_panel(curves: Sequence[Curve], *, scale: Scale = "log", y_label: str = DISTANCE) -> Panel:
    """Distances over steps, from 0."""
    high = max((float(curve.finite.max()) for curve in curves if curve.drawn), default=1.0)
    return Panel("convergence", STEPS[scale], y_label, tuple(curves), x_scale=scale, y_range=(0, max(1.08 * high, 0.1)))


def walk(
    steps: Int[np.ndarray, "record"] | Float[np.ndarray, "record"], distance: Float[np.ndarray, "record"]
) -> Float[np.ndarray, "record"]:
    """The distance to its end of a random walk that starts where the run does: d_0 sqrt(1 - t/T), t from the first."""
    span = max(float(steps[-1] - steps[0]), 1.0) if len(steps) else 1.0
    left = 1.0 - (np.asarray(steps, dtype=float) - float(steps[0])) / span
    seen = distance[np.isfinite(distance)]
    start = float(seen[0]) if len(seen) else np.nan
    way: Float[np.ndarray, "record"] = start * np.sqrt(np.maximum(left, 0.0))
    return way


def walk_away(
    steps: Int[np.ndarray, "record"] | Float[np.ndarray, "record"], distance: Float[np.ndarray, "record"]
) -> Float[np.ndarray, "record"]:
    """The distance from its start of a random walk that comes as far as the run: d_T sqrt(t/T), t from the first."""
    gone = np.asarray(steps, dtype=float) - float(steps[0])
    seen = distance[np.isfinite(distance)]
    way: Float[np.ndarray, "record"] = (float(seen[-1]) if len(seen) else np.nan) * np.sqrt(gone / max(gone[-1], 1.0))
    return way


def dynamics(
    steps: Int[np.ndarray, "record"],
    correlations: Mapping[str, Float[np.ndarray, "record"]],
    distances: Mapping[str, Float[np.ndarray, "record"]],
    *,
    null: Float[np.ndarray, "record"] | None = None,
    baseline: Float[np.ndarray, "record"] | None = None,
    random_walk: Float[np.ndarray, "record"] | None = None,
    scale: Scale = "log",
    y_label: str = DISTANCE,
) -> Drawing:
    """One run so far: correlations by name beside `null` (permuted targets) and `baseline` (row norm), and distances
    by group beside `random_walk`. Series that are NaN throughout are left out; y_label says what the distances are.
    """
    above = [Curve(name, steps, values, "frequency") for name, values in correlations.items()]
    if baseline is not None:
        above.append(Curve("row norm alone", steps, baseline, "baseline"))
    if null is not None:
        above.append(Curve("permuted null", steps, null, "null"))
    below = [Curve(name, steps, values, "convergence") for name, values in distances.items()]
    if random_walk is not None:
        below.append(Curve("random walk", steps, random_walk, "null"))
    panels = (frequency_panel(above, scale=scale), convergence_panel(below, scale=scale, y_label=y_label))
    return Drawing("dynamics", "Frequency and convergence", "", tuple(panel for panel in panels if panel.drawn))
