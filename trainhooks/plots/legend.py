"""Legends: above the axes of a panel that is as wide as a column, within those of a narrow one, over no line."""

from __future__ import annotations

import re
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes

from trainhooks.plots.series import Curve

Corner = Literal["upper right", "upper left", "lower left", "lower right"]
MOST_OF_A_SEQUENCE = 6
MOST_SERIES = 12
BEHIND: dict[str, Any] = {"frameon": True, "framealpha": 0.8, "edgecolor": "none"}
"""A legend that stands within the axes: lines behind it do not cross its words."""
_COMPACT: dict[str, Any] = {"frameon": False, "labelspacing": 0.25, "borderpad": 0.1, "handlelength": 1.7}
_CORNERS: dict[Corner, tuple[int, int]] = {
    "upper right": (1, 1),
    "upper left": (0, 1),
    "lower left": (0, 0),
    "lower right": (1, 0),
}
_NARROW_INCHES = (1.75, 1.65)
"""About what a narrow panel's axes measure."""
_AWAY = 0.02


def entries_of(curves: list[Curve]) -> list[int]:
    """Which curves a legend names: of a long sequence a few stand for all, what all runs have is named once.

    A sequence are curves whose names differ in their numbers alone: layers, ranks, counts.
    """
    kept = [place for place, curve in enumerate(curves) if curve.shade is None]
    first = {(curves[place].label, curves[place].role): place for place in reversed(kept)}
    kept = [place for place in kept if first[curves[place].label, curves[place].role] == place]
    sequences: dict[str, list[int]] = {}
    for place in kept:
        if curves[place].role == "ordered":
            sequences.setdefault(re.sub(r"\d", "", curves[place].label), []).append(place)
    for places in sequences.values():
        if len(places) > MOST_OF_A_SEQUENCE:
            ends = np.linspace(0, len(places) - 1, MOST_OF_A_SEQUENCE - 1).round().astype(int)
            left = set(places) - {places[end] for end in ends}
            kept = [place for place in kept if place not in left]
    return kept[:MOST_SERIES]


def above(ax: Axes, curves: list[Curve], lines: list[Any], *, size: float, inches: float) -> None:
    """A legend above the axes, in as many columns as its words allow."""
    entries = entries_of(curves)
    longest = max(len(curves[entry].label) for entry in entries)
    columns = max(1, min(3, int((inches - 0.3) / (0.33 + 0.042 * longest))))
    bars = any(curve.low is not None and curve.points for curve in curves)
    ax.legend(
        handles=[lines[entry] for entry in entries],
        fontsize=size,
        loc="lower left",
        bbox_to_anchor=(-0.02, 0.99),
        ncols=2 if columns == 3 and len(entries) == 4 else columns,
        columnspacing=1.0,
        numpoints=1,
        markerscale=1 if bars else 2,
        **_COMPACT,
    )


def within(ax: Axes, curves: list[Curve], lines: list[Any], *, size: float) -> None:
    """A legend in that corner of the axes which no line crosses; where each is crossed, at the top, with room made."""
    entries = entries_of(curves)
    wide, high = _share(curves, entries, size=size)
    points = np.concatenate([_on_axes(ax, curve) for curve in curves])
    crossed = {corner: _crossings(points, place, wide, high) for corner, place in _CORNERS.items()}
    corner = min(crossed, key=lambda one: crossed[one])
    if crossed[corner]:
        corner = "upper right" if crossed["upper right"] <= crossed["upper left"] else "upper left"
        _make_room(ax, points, _CORNERS[corner], wide, high)
    handles = [lines[entry] for entry in entries]
    ax.legend(handles=handles, fontsize=size, loc=corner, borderaxespad=0.2, **_COMPACT | BEHIND)


def _share(curves: list[Curve], entries: list[int], *, size: float) -> tuple[float, float]:
    """Width and height of a legend, over those of the axes."""
    longest = max(len(curves[entry].label) for entry in entries)
    wide, high = size * (3.0 + 0.58 * longest) / 72, size * 1.3 * len(entries) / 72
    return wide / _NARROW_INCHES[0] + _AWAY, high / _NARROW_INCHES[1] + _AWAY


def _on_axes(ax: Axes, curve: Curve) -> np.ndarray:
    """Points along a line as shares of the axes [point, 2], close enough together that none slips by."""
    seen = np.isfinite(curve.x) & np.isfinite(curve.y)
    points: np.ndarray = np.column_stack([curve.x, curve.y])[seen]
    points = (ax.transScale + ax.transLimits).transform(points) if len(points) else points
    if len(points) < 2 or curve.points:
        return points
    along = np.linspace(0, len(points) - 1, 20 * len(points))
    return np.column_stack([np.interp(along, np.arange(len(points)), column) for column in points.T])


def _crossings(points: np.ndarray, corner: tuple[int, int], wide: float, high: float) -> int:
    beside = np.abs(points - corner)
    return int(((beside[:, 0] < wide) & (beside[:, 1] < high)).sum())


def _make_room(ax: Axes, points: np.ndarray, corner: tuple[int, int], wide: float, high: float) -> None:
    """Raise the top of the axes until what stands below the legend does."""
    below = points[np.abs(points[:, 0] - corner[0]) < wide, 1]
    scale, (low, _) = ax.yaxis.get_transform(), ax.get_ylim()
    bottom, top = scale.transform(np.array(ax.get_ylim(), dtype=float))
    raised = bottom + (top - bottom) * max(1.0, float(below.max()) / max(1.0 - high, 0.1))
    ax.set_ylim(low, float(scale.inverted().transform(np.array([raised]))[0]))
