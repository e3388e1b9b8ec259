"""Series drawn in characters, for terminals: a line of blocks, and a small plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

BLOCKS = "▁▂▃▄▅▆▇█"


def spark(values: Sequence[float], *, width: int = 32, low: float | None = None, high: float | None = None) -> str:
    """A line of `width` blocks at most, each the last value that its part has; blank where it has none.

    Heights go from `low` to `high`, by default the least and the largest finite value.
    """
    some = _thinned(list(values), width)
    seen = [value for value in some if math.isfinite(value)]
    if not seen:
        return ""
    low, high = min(seen) if low is None else low, max(seen) if high is None else high
    return "".join(_block(value, low, high) for value in some)


def plot(steps: Sequence[int], curves: Mapping[str, Sequence[float]], *, width: int = 60, height: int = 9) -> list[str]:
    """Lines of a plot of curves over log(1 + step), from 0 (or the least value) to 1 (or the largest).

    A curve's mark is its name's first letter; where two meet, the first one's is seen. Names stand below.
    """
    known = {name: [x for x in values if math.isfinite(x)] for name, values in curves.items()}
    everything = [value for values in known.values() for value in values]
    if not everything or not steps:
        return []
    low, high = min(0.0, *everything), max(1.0, *everything)
    cells = [[" "] * width for _ in range(height)]
    for name, values in reversed(list(curves.items())):
        for column, value in _columns(steps, values, width):
            row = round((height - 1) * (1 - (value - low) / (high - low)))
            cells[row][column] = name[0]
    lines = [f"{_level(row, height, low, high):>6} |{''.join(cells[row])}".rstrip() for row in range(height)]
    ends = f"{steps[0]}".ljust(width - len(str(steps[-1]))) + str(steps[-1])
    names = ", ".join(f"{name[0]} {name}" for name in curves)
    return [*lines, f"{'':>6} +{'-' * width}", f"{'':>8}{ends}", f"{'':>8}step, log(1 + step);  {names}"]


def _columns(steps: Sequence[int], values: Sequence[float], width: int) -> list[tuple[int, float]]:
    """A value for each column from the first step's to the last's: that of the last record before it."""
    first, last = math.log1p(steps[0]), math.log1p(steps[-1])
    places = [(math.log1p(step) - first) / ((last - first) or 1.0) * (width - 1) for step in steps]
    seen = [(place, value) for place, value in zip(places, values, strict=True) if math.isfinite(value)]
    found, at = [], 0
    for column in range(width):
        while at + 1 < len(seen) and seen[at + 1][0] <= column + 0.5:
            at += 1
        if seen and seen[at][0] <= column + 0.5:
            found.append((column, seen[at][1]))
    return found


def _level(row: int, height: int, low: float, high: float) -> str:
    return f"{high - (high - low) * row / (height - 1):.2f}" if row % 4 == 0 else ""


def _thinned(values: list[float], width: int) -> list[float]:
    if len(values) <= width:
        return values
    parts = [values[place * len(values) // width : (place + 1) * len(values) // width] for place in range(width)]
    return [next((value for value in reversed(part) if math.isfinite(value)), math.nan) for part in parts]


def _block(value: float, low: float, high: float) -> str:
    if not math.isfinite(value):
        return " "
    share = (value - low) / (high - low) if high > low else 0.0
    return BLOCKS[min(len(BLOCKS) - 1, max(0, int(share * len(BLOCKS))))]
