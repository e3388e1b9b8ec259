"""Colours of curves, which the colour-blind tell apart; without the machinery that draws."""

from __future__ import annotations

from collections.abc import Sequence

from trainhooks.plots.series import Curve

# Okabe and Ito's palette, without its yellow and black
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
FREQUENCY, CONVERGENCE, BASELINE, NULL = "#0072B2", "#D55E00", "#009E73", "#767676"
SEQUENCE = "viridis"


def colours_of(curves: Sequence[Curve]) -> list[str]:
    """A colour for each: by role where there is one run, by run where there are several, by place in a sequence."""
    from matplotlib import colormaps

    several = len({curve.run for curve in curves if curve.role != "null"}) > 1
    ordered = [curve for curve in curves if curve.role == "ordered"]
    by_role = {"frequency": FREQUENCY, "convergence": CONVERGENCE, "baseline": BASELINE}
    groups = 0
    colours = []
    for curve in curves:
        if curve.role == "null":
            colours.append(NULL)
        elif curve.role == "ordered":
            place = ordered.index(curve) / max(1, len(ordered) - 1)
            red, green, blue, _ = colormaps[SEQUENCE](0.92 * place)
            colours.append(f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}")
        elif several or curve.role == "run":
            colours.append(PALETTE[curve.run % len(PALETTE)])
        elif curve.role == "convergence":
            colours.append((CONVERGENCE, "#CC79A7", "#E69F00")[groups % 3])
            groups += 1
        else:
            colours.append(by_role[curve.role])
    return colours
