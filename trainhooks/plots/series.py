"""The numbers of a figure: curves in panels, as the picture, the CSV beside it and the report's page all draw them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from trainhooks.core.printable import shown

Role = Literal["frequency", "convergence", "null", "baseline", "run", "ordered"]
"""What a curve is: the measured frequency or convergence, what it stands against, one of several runs, or one of a
sequence (layers, bins, ranks) that is coloured by its place."""
Scale = Literal["log", "linear"]
"""log: log(1 + x), so that step 0 has a place."""

CSV_COLUMNS = ("panel", "step", "curve", "role", "run", "x", "y", "low", "high", "shade", "name")


@dataclass(frozen=True)
class Curve:
    """A line, or points, of one panel: `y` over `x`, NaN where there is none.

    `low` and `high` bound a band around it. `points`: marks and no line. `shade` [point] colours marks (see
    `Panel.shade_label`), `names` [point] are what each is called. `run` numbers the run it belongs to, from 0.
    """

    label: str
    x: np.ndarray
    y: np.ndarray
    role: Role = "run"
    run: int = 0
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    points: bool = False
    shade: np.ndarray | None = None
    names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        beside = {"y": self.y, "low": self.low, "high": self.high, "shade": self.shade, "names": self.names}
        for name, values in beside.items():
            if values is not None and len(values) != len(self.x):
                raise ValueError(
                    f"curve {self.label!r} has {len(self.x)} x and {len(values)} {name}: give one each point."
                )

    @property
    def drawn(self) -> bool:
        """Whether there is anything to see: a point that is finite."""
        return bool((np.isfinite(self.x) & np.isfinite(self.y)).any())

    @property
    def finite(self) -> np.ndarray:
        """Its y that are finite."""
        found: np.ndarray = self.y[np.isfinite(self.y)]
        return found


@dataclass(frozen=True)
class Panel:
    """Curves on one pair of axes. `step` where the panel shows one state of the run, and others show others.

    `x_names` are the names of the places 0, 1, ... of an axis without a scale.
    """

    title: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]
    x_scale: Scale = "linear"
    y_scale: Literal["linear", "log10"] = "linear"
    y_range: tuple[float, float] | None = None
    shade_label: str = ""
    step: int | None = None
    note: str = ""
    x_names: tuple[str, ...] = ()

    @property
    def drawn(self) -> bool:
        """Whether any curve has anything to see."""
        return any(curve.drawn for curve in self.curves)


@dataclass(frozen=True)
class Drawing:
    """A figure's numbers: its file's `name`, its `title`, the caption's text, and its panels, in `columns` of them.

    One column of print wide; three columns of panels and more take the page.
    """

    name: str
    title: str
    caption: str
    panels: tuple[Panel, ...]
    columns: int = 1

    def rows(self) -> Iterator[tuple[object, ...]]:
        """What the CSV holds: `CSV_COLUMNS`, then one row a point; what is not defined is empty."""
        yield CSV_COLUMNS
        for panel in self.panels:
            for curve in panel.curves:
                for point in range(len(curve.x)):
                    yield (
                        _text(panel.title),
                        "" if panel.step is None else panel.step,
                        _text(curve.label),
                        curve.role,
                        curve.run,
                        *(_number(curve.x, point), _number(curve.y, point), _number(curve.low, point)),
                        *(_number(curve.high, point), _number(curve.shade, point)),
                        "" if curve.names is None else _text(curve.names[point]),
                    )


def _text(words: str) -> str:
    """A cell of words: one line, and no spreadsheet takes it for a formula."""
    line = shown(words)
    return f"'{line}" if line.startswith(("=", "+", "-", "@")) else line


def _number(values: np.ndarray | None, at: int) -> object:
    if values is None:
        return ""
    value = float(values[at])
    return repr(value) if math.isfinite(value) else ""
