"""Colours of curves, which the colour-blind tell apart; without the machinery that draws."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainhooks.plots.series import Curve

# Okabe and Ito's palette, without its yellow and black
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
FREQUENCY, CONVERGENCE, BASELINE, NULL = "#0072B2", "#D55E00", "#009E73", "#767676"
SEQUENCE = "viridis"
_VIRIDIS = ["440154", "472d7b", "3b528b", "2c728e", "21918c", "28ae80", "5ec962", "addc30", "fde725"]
"""Nine of its colours, evenly apart: a report needs no matplotlib for what lies between them."""


def viridis(share: float) -> str:
    """The colour at a share of the way, between those of the table."""
    table = [[int(one[at : at + 2], 16) for one in _VIRIDIS] for at in (0, 2, 4)]
    at = share * (len(_VIRIDIS) - 1)
    return "#" + "".join(f"{round(float(np.interp(at, range(len(part)), part))):02x}" for part in table)


def colours_of(curves: Sequence[Curve]) -> list[str]:
    """A colour for each: by role where there is one run, by run where there are several, by place in a sequence."""
    several = len({curve.run for curve in curves if curve.role != "null"}) > 1
    ordered = [curve for curve in curves if curve.role == "ordered"]
    by_role = {"frequency": FREQUENCY, "convergence": CONVERGENCE, "baseline": BASELINE}
    groups = 0
    colours = []
    for curve in curves:
        if curve.role == "null":
            colours.append(NULL)
        elif curve.role == "ordered":
            colours.append(viridis(0.92 * ordered.index(curve) / max(1, len(ordered) - 1)))
        elif several or curve.role == "run":
            colours.append(PALETTE[curve.run % len(PALETTE)])
        elif curve.role == "convergence":
            colours.append((CONVERGENCE, "#CC79A7", "#E69F00")[groups % 3])
            groups += 1
        else:
            colours.append(by_role[curve.role])
    return colours
