"""Figures of deletion and steering, from the JSON that `trainhooks prune --json` and `steer --json` print."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainhooks.plots import Curve, Drawing, Panel
from trainhooks.plots.series import Role
from trainhooks.run_figures import captions

MEASURES = {
    "js": ("JS divergence (nats)", "output moved"),
    "loss_change": ("change of the loss (nats)", "loss"),
}
RANDOM = "random"
LEAST = 1e-12
"""Of what is drawn on an axis of logarithms."""


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
                Curve(name.replace("_", " "), shares, _numbers(code[measure]), "run", run=place)
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
    """Median achieved ratio over tokens at each requested one, by direction; random directions are the null."""
    edits = [edit for edit in found["edits"] if edit["feasible"]]
    ratios = sorted({float(edit["requested"]) for edit in edits})
    directions = list(dict.fromkeys(str(edit["direction"]) for edit in edits))
    directions.sort(key=lambda name: RANDOM in name)  # the null behind those that were solved for
    curves = [_achieved(edits, name, ratios, place=place, of=len(directions)) for place, name in enumerate(directions)]
    for place, ratio in enumerate(ratios):
        curves.append(Curve("as asked", place + np.array([-0.45, 0.45]), np.full(2, ratio), "baseline"))
    curves.append(Curve("no effect", np.array([-0.5, len(ratios) - 0.5]), np.ones(2), "null"))
    panel = Panel(
        "steering",
        "requested ratio of probabilities",
        "achieved ratio",
        tuple(curves),
        y_scale="log10",
        x_names=tuple(f"{ratio:g}" for ratio in ratios),
    )
    return Drawing(f"steering{suffix}", "Steering", captions.STEERING, (panel,))


def _achieved(edits: list[Mapping[str, Any]], direction: str, ratios: Sequence[float], *, place: int, of: int) -> Curve:
    """One direction: median and quartiles over tokens at each ratio, beside where the others stand."""
    own = [edit for edit in edits if edit["direction"] == direction]
    reached = [[float(edit["achieved"]) for edit in own if float(edit["requested"]) == ratio] for ratio in ratios]
    low, middle, high = (
        np.array([max(float(np.quantile(one, q)), LEAST) if one else np.nan for one in reached])
        for q in (0.25, 0.5, 0.75)
    )
    x = np.arange(len(ratios)) + 0.8 * ((place + 0.5) / of - 0.5)
    role: Role = "null" if RANDOM in direction else "run"
    return Curve(direction.replace("_", " "), x, middle, role, run=place, low=low, high=high, points=True)


def _numbers(values: list[Any]) -> np.ndarray:
    return np.array([np.nan if value is None else float(value) for value in values])
