"""The figure of the lead: both parts' progress, and the lead beside the labellings that it must beat."""

from __future__ import annotations

import numpy as np

from trainhooks.lead.lead import Lead
from trainhooks.plots import Curve, Drawing, Panel
from trainhooks.plots.dynamics import STEPS
from trainhooks.run_figures import captions
from trainhooks.run_figures.run_numbers import RunNumbers

SHORT = {
    "sign flips": "sign\nflips",
    "block rotations": "block\nrotations",
    "random directions of the change": "random\ndirections",
    "permutations": "permu-\ntations",
}


def lead_drawing(run: RunNumbers) -> Drawing:
    """(i) Progress of frequency and rest, and the lead at the first q beside its matched labellings."""
    if run.lead is None:
        return Drawing("lead", "The lead", captions.LEAD, ())
    curves = run.lead.curves
    straight = 1.0 - curves.distance
    above = Panel(
        "progress",
        STEPS["log"],
        "share of the final change",
        (
            Curve("frequency part", curves.steps, curves.frequency, "frequency"),
            Curve("rest", curves.steps, curves.rest, "convergence"),
            Curve("straight line", curves.steps, straight, "null"),
        ),
        x_scale="log",
        y_range=(min(-0.05, float(np.nanmin([curves.frequency, curves.rest]))), 1.15),
    )
    return Drawing("lead", "The lead beside its matched labellings", captions.LEAD, (above, _beside(run.lead.leads[0])))


def _beside(lead: Lead) -> Panel:
    names = list(lead.nulls)
    low, middle, high = (
        np.array([getattr(lead.nulls[name], end) for name in names]) for end in ("low", "median", "high")
    )
    places = np.arange(1, len(names) + 1, dtype=float)
    note = (
        f"q = {lead.q:g}, lead {lead.lead:.2f}, p = {lead.p:.2g}"
        if np.isfinite(lead.lead)
        else f"q = {lead.q:g}: no lead"
    )
    own = Curve(
        "frequency",
        np.array([0.0]),
        np.array([lead.lead]),
        "frequency",
        low=np.array([lead.interval.low]),
        high=np.array([lead.interval.high]),
        points=True,
    )
    return Panel(
        "lead",
        "labelling",
        "lead (rest / frequency)",
        (
            own,
            Curve("labellings without meaning (5-95%)", places, middle, "null", low=low, high=high, points=True),
            Curve("no lead (1)", np.array([-0.5, len(names) + 0.5]), np.ones(2), "baseline"),
        ),
        x_names=("frequency", *(SHORT.get(name, name) for name in names)),
        note=note,
    )
