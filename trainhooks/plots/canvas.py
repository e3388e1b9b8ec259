"""A panel's numbers on matplotlib's axes: one column of print, colours that the colour-blind tell apart, no pyplot."""

from __future__ import annotations

import math
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedFormatter, FixedLocator, LogFormatter, NullLocator

from trainhooks.core.printable import shown
from trainhooks.plots import legend
from trainhooks.plots.colours import SEQUENCE, colours_of
from trainhooks.plots.series import Curve, Drawing, Panel

COLUMN = 3.35
"""Inches: one column of a two-column page (85 mm)."""
PAGE = 7.0
PANEL = 1.9
DPI = 200
SMALL, TEXT = 6.0, 7.0
DASHES: dict[str, Any] = {"null": (0, (1, 1.2)), "baseline": (0, (4, 1.5))}
FEW = 32
"""Points of a line that are marked, since it was measured only there."""
MARKS = ("o", "s", "^", "D", "v", "P")


class Plot(Figure):
    """A figure without pyplot, so that it can be drawn in any thread; a notebook shows it all the same."""

    def _repr_png_(self) -> bytes:
        file = BytesIO()
        self.savefig(file, format="png", dpi=DPI)
        return file.getvalue()


class _Plain(LogFormatter):
    """Which ticks are named as there; 0.6 is no 6e-01."""

    def __call__(self, x: float, pos: Any = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def draw(drawing: Drawing) -> Plot:
    """A drawing as a figure: panels in order, each with its axes named and its null or baseline in it.

    One column wide (85 mm), its height by its panels. Nothing global of matplotlib's is touched. What comes from files
    is drawn as text, never as markup.
    """
    panels = [panel for panel in drawing.panels if panel.drawn] or list(drawing.panels[:1])
    rows = math.ceil(len(panels) / drawing.columns)
    width = COLUMN if drawing.columns < 3 else PAGE
    height = {1: PANEL, 2: 1.7}.get(drawing.columns, 2.1)
    figure = Plot(figsize=(width, 0.1 + height * rows), layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.03))
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, drawing.columns, squeeze=False).flatten()
    shaded = [draw_panel(ax, panel, narrow=drawing.columns > 1) for ax, panel in zip(axes, panels, strict=False)]
    _colour_bars(figure, axes, panels, shaded)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    return figure


def draw_panel(ax: Axes, panel: Panel, *, narrow: bool = False) -> Any:
    """One panel on one pair of axes; returns what is coloured by a value, None where nothing is."""
    curves = [curve for curve in panel.curves if curve.drawn]
    colours = colours_of(curves)
    lines = [_draw_curve(ax, curve, colour) for curve, colour in zip(curves, colours, strict=True)]
    _axes(ax, panel, curves, narrow=narrow)
    displaced = _legend(ax, curves, lines, narrow=narrow)
    if panel.title and not displaced:
        ax.set_title(escaped(panel.title), fontsize=SMALL - 0.3 if narrow else TEXT, loc="left", pad=3)
    _notes(ax, panel, displaced=displaced)
    return next((line for line, curve in zip(lines, curves, strict=True) if curve.shade is not None), None)


def _notes(ax: Axes, panel: Panel, *, displaced: bool) -> None:
    """The panel's note at the upper left; at the upper right which state it shows, where a legend took its title."""
    small: dict[str, Any] = {"fontsize": SMALL - 0.5, "va": "top", "linespacing": 1.25, "transform": ax.transAxes}
    step = f"step {panel.step:,}" if displaced and panel.step is not None else ""
    if step and panel.note:
        ax.text(0.03, 0.97, escaped(f"{step}\n{panel.note}"), **small)
    elif step or panel.note:
        ax.text(0.98 if step else 0.03, 0.97, escaped(step or panel.note), ha="right" if step else "left", **small)


def _colour_bars(figure: Figure, axes: Any, panels: list[Panel], shaded: list[Any]) -> None:
    """One bar for all panels where all are coloured, else one for each that is."""
    coloured = [(ax, panel, marks) for ax, panel, marks in zip(axes, panels, shaded, strict=False) if marks is not None]
    together = len(coloured) == len(panels) > 1
    if together:
        low, high = (end(end(marks.get_clim()) for *_, marks in coloured) for end in (min, max))
        for *_, marks in coloured:
            marks.set_clim(low, high)
    for ax, panel, marks in coloured[: 1 if together else None]:
        where = [ax for ax, *_ in coloured] if together else ax
        size: dict[str, Any] = {"location": "bottom", "aspect": 40, "pad": 0.02} if together else {"pad": 0.02}
        bar = figure.colorbar(marks, ax=where, fraction=0.05, **size)
        bar.set_label(panel.shade_label, fontsize=SMALL, labelpad=1)
        bar.ax.tick_params(labelsize=SMALL - 0.5, width=0.4, length=2)
        bar.outline.set_linewidth(0.4)


def _draw_curve(ax: Axes, curve: Curve, colour: str) -> Any:
    label = escaped(curve.label)
    if curve.points and curve.shade is not None:
        order = np.argsort(curve.shade)[::-1]  # rare tokens, which are many, below the frequent ones
        marks: dict[str, Any] = {"s": 3 if len(order) > 200 else 8, "linewidths": 0, "alpha": 0.8, "rasterized": True}
        return ax.scatter(curve.x[order], curve.y[order], c=curve.shade[order], cmap=SEQUENCE, label=label, **marks)
    if curve.points and curve.low is not None and curve.high is not None:
        around = np.array([curve.y - curve.low, curve.high - curve.y])
        mark = MARKS[curve.run % len(MARKS)]
        bars: dict[str, Any] = {"fmt": mark, "ms": 3, "elinewidth": 0.9, "capsize": 2, "mew": 0.5}
        return ax.errorbar(curve.x, curve.y, yerr=around.clip(0), color=colour, label=label, **bars)
    if curve.points:
        size = 1.2 if len(curve.x) > 200 else 2.5
        (line,) = ax.plot(curve.x, curve.y, ".", color=colour, ms=size, mew=0, alpha=0.7, label=label, rasterized=True)
        return line
    if curve.low is not None and curve.high is not None:
        ax.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.18, lw=0)
    few: dict[str, Any] = {"marker": "o", "ms": 1.8, "mew": 0} if _is_sparse(curve) else {}
    seen = np.isfinite(curve.y)
    (line,) = ax.plot(
        curve.x[seen], curve.y[seen], color=colour, lw=1.0, ls=DASHES.get(curve.role, "-"), label=label, **few
    )
    return line


def _is_sparse(curve: Curve) -> bool:
    """Whether its points are few enough to be seen one by one; a reference has none to see."""
    return curve.role not in ("null", "baseline") and np.isfinite(curve.y).sum() <= FEW


def _axes(ax: Axes, panel: Panel, curves: list[Curve], *, narrow: bool) -> None:
    if panel.x_scale == "log" and curves:
        ax.set_xscale("function", functions=(_log1p, np.expm1))
        top = max(float(np.nanmax(curve.x)) for curve in curves)
        ticks = log_ticks(top)
        ax.set_xlim(0, max(top, 1.0) * 1.02)
        ax.xaxis.set_major_locator(FixedLocator(ticks))
        ax.xaxis.set_major_formatter(FixedFormatter([f"{tick:,}" for tick in ticks]))
        ax.xaxis.set_minor_locator(NullLocator())
    if panel.x_names:
        ax.set_xticks(range(len(panel.x_names)), [escaped(name) for name in panel.x_names], fontsize=SMALL - 0.5)
        ax.set_xlim(-0.5, len(panel.x_names) - 0.5)
    if panel.y_scale == "log10":
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(_Plain(labelOnlyBase=False, minor_thresholds=(2, 0.5)))
        ax.yaxis.set_minor_formatter(_Plain(labelOnlyBase=False, minor_thresholds=(2, 0.5)))
        ax.tick_params(axis="y", which="minor", labelsize=SMALL - 0.5, width=0.4, length=1.5)
    if panel.y_range is not None:
        ax.set_ylim(*panel.y_range)
    size = SMALL if narrow else TEXT
    ax.set_xlabel(panel.x_label, fontsize=size, labelpad=1.5)
    ax.set_ylabel(panel.y_label, fontsize=size, labelpad=2)
    ax.tick_params(labelsize=SMALL - 0.5 if panel.x_names else SMALL, width=0.5, length=2)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_linewidth(0.5)


def _log1p(x: Any) -> Any:
    return np.log1p(np.maximum(x, -0.9))


def log_ticks(top: float) -> list[int]:
    """0, 1, 10, 100 ... up to the last step, thinned to six or so."""
    ticks = [0, *(10**power for power in range(max(1, int(math.log10(max(top, 1))) + 1)))]
    return ticks if len(ticks) <= 7 else [0, *ticks[1::2]]


def _legend(ax: Axes, curves: list[Curve], lines: list[Any], *, narrow: bool) -> bool:
    """A legend, and whether it stands above the axes, where the title would; in a `narrow` panel it is within them."""
    if len(legend.entries_of(curves)) < 2 or (narrow and any(curve.points for curve in curves)):
        return False  # what its marks are: see the caption
    if narrow:
        legend.within(ax, curves, lines, size=SMALL - 1)
    else:
        legend.above(ax, curves, lines, size=SMALL - 0.5, inches=COLUMN)
    return not narrow


def escaped(text: str) -> str:
    """One line or several, with what cannot be seen spelled, and no dollar that starts a formula."""
    return "\n".join(shown(line) for line in text.split("\n")).replace("$", r"\$")
