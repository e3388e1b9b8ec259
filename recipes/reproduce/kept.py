"""The kept figures of a grid: read, grouped by family, and summarised over seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from grid import CODE, MAIN, OTHERS, PYTHIA, pythia
from scipy import stats

Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Kept:
    """`families` by name, each the figures of its seeds; the verdict over each; models that were trained elsewhere."""

    families: dict[str, list[Figures]]
    verdicts: dict[str, Figures]
    models: Figures

    @property
    def cells(self) -> list[Figures]:
        """All of them."""
        return [cell for family in self.families.values() for cell in family]


def read(folder: Path) -> Kept:
    """What `folder` holds. Raises FileNotFoundError where it holds no cell."""
    families: dict[str, list[Figures]] = {}
    verdicts: dict[str, Figures] = {}
    models: Figures = {}
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        if path.stem == "models":
            models = found
        elif path.stem.startswith("verdict-"):
            verdicts[path.stem.removeprefix("verdict-")] = found
        else:
            families.setdefault(found["family"], []).append(found)
    if not families:
        raise FileNotFoundError(f"{folder} holds no kept figures; run the grid first: python recipes/reproduce --help")
    order = [MAIN.family, CODE.family, *(cell.family for cell in OTHERS.values())]
    known = [name for name in order if name in families]
    rest = [name for name in families if name not in known]
    return Kept({name: families[name] for name in [*known, *rest]}, verdicts, models)


def title(family: str) -> str:
    """A family in words."""
    named = {MAIN.family: "English", CODE.family: "code"}
    named |= {cell.family: f"English, {what}" for what, cell in OTHERS.items()}
    named |= {cell.family: f"English, shape and vocabulary of {cell.size}" for cell in pythia(list(PYTHIA))}
    return named.get(family, family)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean and 95% t-interval; the values themselves where there are two, - where there is none."""
    if not values:
        return "-"
    if len(values) < 3:
        return ", ".join(number(value, digits) for value in values)
    low, high = interval(values)
    return f"{number(float(np.mean(values)), digits)} [{number(low, digits)}, {number(high, digits)}]"


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95% t-interval of a mean over seeds."""
    mean = float(np.mean(values))
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return mean - half, mean + half


def number(value: float, digits: int = 2) -> str:
    """With `digits` decimals; more where it would read 0."""
    if value and abs(value) < 0.5 * 10**-digits:
        return f"{value:.1g}"
    return f"{value:.{digits}f}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, a line's end behind it."""
    lines = ["| " + " | ".join(row) + " |" for row in (heads, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(heads), *lines[1:], ""])
