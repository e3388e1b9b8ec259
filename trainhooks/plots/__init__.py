"""Plots: arrays in, a matplotlib figure out, by way of the numbers that it shows. Knows no store and no pyplot.

`draw(dynamics(...))`, `draw(scatter(...))`, `draw(saliency(...))`: the first step gives the numbers (a `Drawing`), the
second the picture. Needs the extra `figures`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainhooks.plots.dynamics import convergence_panel, dynamics, frequency_panel
from trainhooks.plots.probe import saliency, saliency_panel, scatter, scatter_panel
from trainhooks.plots.series import Curve, Drawing, Panel

if TYPE_CHECKING:
    from trainhooks.plots.canvas import Plot

__all__ = [
    "Curve",
    "Drawing",
    "Panel",
    "convergence_panel",
    "draw",
    "dynamics",
    "frequency_panel",
    "saliency",
    "saliency_panel",
    "scatter",
    "scatter_panel",
]


def draw(drawing: Drawing) -> Plot:
    """A drawing as a matplotlib figure (`trainhooks.plots.canvas.draw`).

    Raises ImportError, naming the extra, where matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'trainhooks[figures]'") from error
    from trainhooks.plots.canvas import draw as on_canvas

    return on_canvas(drawing)
