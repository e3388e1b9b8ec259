"""The drawings as the page's script reads them: arrays once each, no more points than the eye can tell apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from trainhooks.lead.trajectory import thinned
from trainhooks.plots import Curve, Drawing, Panel
from trainhooks.plots.colours import colours_of

MOST_POINTS = 400
DIGITS = 5


class Payload:
    """Collects drawings; `json` is what the script is given. Equal arrays are held once."""

    def __init__(self) -> None:
        self._arrays: list[list[float | None]] = []
        self._names: list[list[str]] = []
        self._seen: dict[bytes, int] = {}
        self._seen_names: dict[tuple[str, ...], int] = {}
        self._drawings: list[dict[str, Any]] = []

    @property
    def json(self) -> dict[str, Any]:
        """Arrays, names of points, and drawings that refer to them by number."""
        return {"arrays": self._arrays, "names": self._names, "drawings": self._drawings}

    def add(self, drawing: Drawing, *, slider: bool = False) -> int:
        """A drawing's number. `slider`: its panels are one plot at several steps."""
        panels = [self._panel(panel) for panel in drawing.panels if panel.drawn]
        self._drawings.append({"name": drawing.name, "slider": slider, "panels": panels})
        return len(self._drawings) - 1

    def _panel(self, panel: Panel) -> dict[str, Any]:
        curves = [curve for curve in panel.curves if curve.drawn]
        return {
            "title": panel.title if panel.step is not None else "",
            "x_label": panel.x_label,
            "y_label": panel.y_label,
            "x_scale": panel.x_scale,
            "y_scale": panel.y_scale,
            "y_range": None if panel.y_range is None else list(panel.y_range),
            "x_names": list(panel.x_names),
            "shade_label": panel.shade_label,
            "step": panel.step,
            "note": panel.note,
            "toggles": panel.x_scale == "log",
            "curves": [self._curve(curve, colour) for curve, colour in zip(curves, colours_of(curves), strict=True)],
        }

    def _curve(self, curve: Curve, colour: str) -> dict[str, Any]:
        kept = np.arange(len(curve.x)) if curve.points else spread(curve.x)
        parts = {name: getattr(curve, name) for name in ("x", "y", "low", "high", "shade")}
        return {
            "label": curve.label,
            "role": curve.role,
            "run": curve.run,
            "points": curve.points,
            "colour": colour,
            "names": None if curve.names is None else self._named(curve.names),
            **{
                name: None if values is None else self._array(np.asarray(values)[kept])
                for name, values in parts.items()
            },
        }

    def _array(self, values: np.ndarray) -> int:
        key = values.astype(np.float64).tobytes()
        if key not in self._seen:
            self._seen[key] = len(self._arrays)
            self._arrays.append([rounded(float(value)) for value in values])
        return self._seen[key]

    def _named(self, names: Sequence[str]) -> int:
        key = tuple(names)
        if key not in self._seen_names:
            self._seen_names[key] = len(self._names)
            self._names.append(list(key))
        return self._seen_names[key]


def spread(x: np.ndarray) -> np.ndarray:
    """Which points of a long line are kept: evenly on a linear axis and on one of log(1 + x), first and last too."""
    if len(x) <= MOST_POINTS or np.any(np.diff(x) <= 0) or x[0] < 0:
        return np.arange(len(x))
    linear = np.linspace(0, len(x) - 1, MOST_POINTS // 2).round().astype(int)
    return np.union1d(linear, thinned(x, limit=MOST_POINTS // 2))


def rounded(value: float) -> float | int | None:
    """Five digits; None for what is not finite."""
    if not math.isfinite(value):
        return None
    short = float(f"{value:.{DIGITS}g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 and short == value else short
