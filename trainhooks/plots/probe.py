"""The probe at one step: held-out predictions against the truth, and which dimensions its slope uses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from trainhooks.plots.series import Curve, Drawing, Panel

TRUE = "-log frequency (nats)"
PREDICTED = "held-out prediction (nats)"
SALIENCY = "saliency |A| sd(E) (nats)"


def scatter_panel(
    true: Float[np.ndarray, "row"],
    predicted: Float[np.ndarray, "row"],
    *,
    spearman: float,
    null: float,
    baseline: float = float("nan"),
    step: int | None = None,
    names: Sequence[str] | None = None,
) -> Panel:
    """Predictions over true values; `spearman` of the probe, of permuted targets (`null`) and of the row norm."""
    ends = np.array([np.nanmin(true), np.nanmax(true)])
    middle = float(np.nanmedian(true))
    curves = (
        Curve("tokens", true, predicted, "frequency", points=True, names=names),
        Curve("perfect", ends, ends, "baseline"),
        Curve("no information (median)", ends, np.array([middle, middle]), "null"),
    )
    said = {"Spearman": spearman, "row norm": baseline, "permuted": null}
    note = "\n".join(f"{name} {value:.2f}" for name, value in said.items() if np.isfinite(value))
    title = "probe" if step is None else f"probe at step {step:,}"
    return Panel(title, TRUE, PREDICTED, curves, step=step, note=note)


def scatter(
    true: Float[np.ndarray, "row"],
    predicted: Float[np.ndarray, "row"],
    *,
    spearman: float,
    null: float,
    baseline: float = float("nan"),
    step: int | None = None,
    names: Sequence[str] | None = None,
) -> Drawing:
    """`scatter_panel` as a figure of its own."""
    panel = scatter_panel(true, predicted, spearman=spearman, null=null, baseline=baseline, step=step, names=names)
    return Drawing("scatter", "Probe: predicted against true log frequency", "", (panel,))


def saliency_panel(
    saliency: Float[np.ndarray, "dim"],
    *,
    rotated: Float[np.ndarray, "draw dim"] | None = None,
    step: int | None = None,
) -> Panel:
    """Saliency of each dimension, falling, beside that in random rotations of the axes (median and central 95%)."""
    place = np.arange(1, len(saliency) + 1)
    curves = [Curve("own axes", place, np.sort(saliency)[::-1], "frequency")]
    if rotated is not None and len(rotated):
        falling = np.sort(rotated, axis=1)[:, ::-1]
        low, middle, high = np.quantile(falling, [0.025, 0.5, 0.975], axis=0)
        curves.append(Curve(f"{len(rotated)} random rotations", place, middle, "null", low=low, high=high))
    return Panel(
        "saliency" if step is None else f"saliency, step {step:,}",
        "dimensions by falling saliency",
        SALIENCY,
        tuple(curves),
        step=step,
    )


def saliency(
    values: Float[np.ndarray, "dim"],
    *,
    rotated: Float[np.ndarray, "draw dim"] | None = None,
    step: int | None = None,
) -> Drawing:
    """`saliency_panel` as a figure of its own."""
    return Drawing(
        "saliency", "Which dimensions the probe uses", "", (saliency_panel(values, rotated=rotated, step=step),)
    )
