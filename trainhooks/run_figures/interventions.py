"""Figures of deletion and steering, from the JSON that `trainhooks prune --json` and `steer --json` print."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trainhooks.plots import Curve, Drawing, Panel
from trainhooks.plots.series import Role
from trainhooks.run_figures import captions

MEASURES = {
    "js": ("Jensen-Shannon divergence (nats)", "output moved"),
    "loss_change": ("change of the loss (nats)", "loss"),
}
RANDOM = "random"


def intervention_drawing(path: str | Path, *, number: int = 1) -> Drawing:
    """(f) Deletion or steering curves of one saved result.

    Raises ValueError for a file that is not such JSON, and OSError where it cannot be read.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, numbers or nesting without end
        raise ValueError(f"{path} is no JSON ({error}): give what `prune --json` or `steer --json` printed.") from None
    try:
        drawing = _drawing(found, suffix="" if number == 1 else f"_{number}")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path} lacks what a result of prune or steer has: {error!r}.") from None
    if drawing is None:
        raise ValueError(
            f"{path} is neither a result of `prune --json` nor of `steer --json` of one model: save one of those."
        )
    if not any(panel.drawn for panel in drawing.panels):
        raise ValueError(f"{path} holds no curve: a deletion needs an order, steering an edit that was feasible.")
    return drawing


def _drawing(found: Mapping[str, Any], *, suffix: str) -> Drawing | None:
    if "codes" in found:
        return _deletion(found, suffix=suffix)
    return _steering(found["steering"], suffix=suffix) if "steering" in found else None


def _deletion(found: Mapping[str, Any], *, suffix: str) -> Drawing:
    """Each order of the first variant, with the mean and the range of random orders as the null."""
    shares = 100 * _numbers(found["deleted_shares"])
    codes = [(str(code["code"]), code) for code in found["codes"]]
    variants = list(dict.fromkeys(label.split("/")[0] for label, _ in codes if "/" in label))
    panels = []
    for measure, (y_label, title) in MEASURES.items():
        for variant in variants[:1]:
            own = [(label.split("/", 1)[1], code) for label, code in codes if label.startswith(f"{variant}/")]
            named = [(name, code) for name, code in own if not name.startswith(RANDOM)]
            curves = [
                Curve(f"{variant}, {name}", shares, _numbers(code[measure]), "run", run=place)
                for place, (name, code) in enumerate(named)
            ]
            draws = np.array([_numbers(code[measure]) for name, code in own if name.startswith(RANDOM)])
            if len(draws):
                low, high = draws.min(axis=0), draws.max(axis=0)
                label = f"{len(draws)} random orders"
                curves.append(Curve(label, shares, draws.mean(axis=0), "null", low=low, high=high))
            panels.append(Panel(title, "deleted dimensions (%)", y_label, tuple(curves)))
    caption = captions.DELETION.format(variant=variants[0] if variants else "no variant")
    return Drawing(f"deletion{suffix}", "Deletion", caption, tuple(panel for panel in panels if panel.drawn))


def _steering(found: Mapping[str, Any], *, suffix: str) -> Drawing:
    """Median achieved ratio over tokens against the requested one, by direction; random directions are the null."""
    edits = [edit for edit in found["edits"] if edit["feasible"]]
    directions = list(dict.fromkeys(str(edit["direction"]) for edit in edits))
    solved = [name for name in directions if RANDOM not in name]
    curves = [_achieved(edits, name, run=solved.index(name) if name in solved else 0) for name in directions]
    ends = np.log2([min(float(e["requested"]) for e in edits), max(float(e["requested"]) for e in edits)])
    curves.append(Curve("as asked", ends, ends, "baseline"))
    curves.append(Curve("no effect", ends, np.zeros(2), "null"))
    caption = captions.STEERING
    panel = Panel("steering", "requested ratio (log2)", "achieved ratio (log2)", tuple(curves))
    return Drawing(f"steering{suffix}", "Steering", caption, (panel,))


def _achieved(edits: list[Mapping[str, Any]], direction: str, *, run: int) -> Curve:
    """One direction: median and quartiles over tokens at each ratio, all as log2."""
    own = [edit for edit in edits if edit["direction"] == direction]
    ratios = sorted({float(edit["requested"]) for edit in own})
    reached = [[float(edit["achieved"]) for edit in own if float(edit["requested"]) == ratio] for ratio in ratios]
    low, middle, high = (
        np.log2(np.maximum([np.quantile(one, q) for one in reached], 1e-12)) for q in (0.25, 0.5, 0.75)
    )
    role: Role = "null" if RANDOM in direction else "run"
    return Curve(direction, np.log2(ratios), middle, role, run=run, low=low, high=high)


def _numbers(values: list[Any]) -> np.ndarray:
    return np.array([np.nan if value is None else float(value) for value in values])
