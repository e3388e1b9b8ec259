"""The page's pictures, from the kept figures: seeds as thin lines, nulls in grey, axes with units."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from kept import Figures, Kept, title
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tables import bin_names

BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#808080"  # Okabe and Ito
RESOLUTION = 110


def draw(kept: Kept, folder: Path) -> None:
    """Writes all of them into `folder`."""
    for name, picture in (("dynamics", dynamics), ("lead", leads), ("along", along), ("findings", findings)):
        figure = picture(kept)
        figure.savefig(folder / f"{name}.png", dpi=RESOLUTION, metadata={"Software": None})


def shown(kept: Kept) -> dict[str, list[Figures]]:
    """The families that are drawn by themselves: the first two."""
    return dict(list(kept.families.items())[:2])


def axis(panel: Axes, name: str, y: str, x: str = "updates") -> None:
    """What every panel has."""
    panel.set_title(name, fontsize=9, loc="left")
    panel.set_xlabel(x, fontsize=8)
    panel.set_ylabel(y, fontsize=8)
    panel.tick_params(labelsize=7)
    panel.spines[["top", "right"]].set_visible(False)


def steps_axis(panel: Axes, last: int) -> None:
    """log(1 + step), which has a place for step 0."""
    panel.set_xscale("function", functions=(np.log1p, np.expm1))
    ticks = [tick for tick in (0, 1, 3, 10, 30, 100, 300, 1000) if tick <= last]
    panel.set_xticks(ticks, [str(tick) for tick in ticks])
    panel.set_xlim(0, last)


def each(panel: Axes, x: list[float], lines: list[list[float]], colour: str, *, label: str, style: str = "-") -> None:
    """One thin line a seed, all under one label."""
    for number, line in enumerate(lines):
        values = [np.nan if value is None else value for value in line]
        panel.plot(x, values, style, color=colour, lw=0.9, alpha=0.75, label=label if number == 0 else None)


def dynamics(kept: Kept) -> Figure:
    """Held-out correlation beside its null, and every group's distance to its end."""
    families = shown(kept)
    figure = Figure(figsize=(4.0 * len(families), 5.2), layout="constrained")
    grid = figure.subplots(2, len(families), squeeze=False)
    for column, (family, cells) in enumerate(families.items()):
        series = [cell["series"] for cell in cells]
        step, top, low = series[0]["step"], grid[0][column], grid[1][column]
        axis(top, f"{title(family)}: frequency probe, {len(cells)} seeds", "held-out Spearman (-1 to 1)")
        each(top, step, [one["heldout_spearman"] for one in series], BLUE, label="held out")
        each(top, step, [one["permuted_heldout_spearman"] for one in series], GREY, label="permuted null", style="--")
        axis(low, "convergence", "distance to final, of its length")
        layers = sorted(name for name in series[0]["distance"] if name.startswith("layers."))
        for name, colour in (("output_embedding", ORANGE), (layers[0], GREEN), (layers[-1], PURPLE)):
            each(low, step, [one["distance"][name] for one in series], colour, label=name.replace("_", " "))
        for panel in (top, low):
            steps_axis(panel, int(step[-1]))
            panel.legend(fontsize=7, frameon=False)
    return figure


def leads(kept: Kept) -> Figure:
    """Every cell's lead, beside the median of the null that comes nearest."""
    figure = Figure(figsize=(6.4, 1.0 + 0.36 * len(kept.families)), layout="constrained")
    panel = figure.subplots()
    axis(panel, "lead of frequency over the rest, at half of the way", "", "lead (1: at the same step)")
    for place, cells in enumerate(kept.families.values()):
        for cell in cells:
            nulls = [null["median"] for null in cell["verdict"]["nulls"].values() if null["median"]]
            panel.plot(nulls, [place + 0.18] * len(nulls), "|", color=GREY, ms=7)
            panel.plot(cell["verdict"]["lead"] or np.nan, place - 0.1, "o", color=BLUE, ms=4)
    panel.plot([], [], "o", color=BLUE, ms=4, label="a seed's lead")
    panel.plot([], [], "|", color=GREY, ms=7, label="medians of its nulls")
    panel.axvline(1, color=GREY, lw=0.7)
    panel.set_yticks(range(len(kept.families)), [title(family) for family in kept.families], fontsize=7)
    panel.set_ylim(len(kept.families) - 0.4, -0.6)
    figure.legend(fontsize=7, frameon=False, loc="outside lower center", ncols=2)
    return figure


def along(kept: Kept) -> Figure:
    """Steering and deletion over the steps."""
    figure = Figure(figsize=(8.0, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    axis(left, "steering: ratios 2 and 5", "median |log(achieved / ratio)|")
    axis(right, "deletion: JS 0.02, loss 0.05", "share of dimensions")
    last = 1
    for (family, cells), colour in zip(shown(kept).items(), (BLUE, ORANGE), strict=False):
        steps = [row["step"] for row in cells[0]["steering"]]
        last = max(last, int(steps[-1]))
        for panel, what, names in (
            (left, "steering", ("least_norm", "random_norm")),
            (right, "deletion", ("zero ascending", "zero random")),
        ):
            for name, one, style in zip(names, (colour, GREY), ("-", "--"), strict=True):
                lines = [[row.get(name) for row in cell[what]] for cell in cells]
                label = f"{title(family)}: {name.replace('_', ' ')}"
                each(panel, steps, lines, one, label=label, style=style)
    left.set_yscale("log")
    for panel in (left, right):
        steps_axis(panel, last)
        panel.legend(fontsize=6, frameon=False)
    return figure


def findings(kept: Kept) -> Figure:
    """The three findings, of the first family."""
    family, cells = next(iter(kept.families.items()))
    figure = Figure(figsize=(9.6, 3.0), layout="constrained")
    one, two, three = figure.subplots(1, 3)
    step = cells[0]["direction"]["step"]
    axis(one, f"{title(family)}: direction and length", "of the last step's")
    each(one, step, [cell["direction"]["cosine"] for cell in cells], BLUE, label="cosine")
    each(one, step, [cell["direction"]["size"] for cell in cells], ORANGE, label="length")
    each(one, step, [cell["direction"]["null_cosine"] for cell in cells], GREY, label="cosine, permuted", style="--")
    axis(two, "rows by count", "share of their way")
    names = bin_names(cells[0]["rows"]["bins"])
    for name, colour in zip((names[0], names[len(names) // 2], names[-1]), (GREY, GREEN, PURPLE), strict=True):
        lines = [cell["rows"]["bins"][name]["way"] for cell in cells if name in cell["rows"]["bins"]]
        each(two, cells[0]["rows"]["step"], lines, colour, label=f"count {name}")
    axis(three, "seen, beyond the corpus", "held-out R$^2$")
    seen = [cell["seen_counts"] for cell in cells]
    each(three, seen[0]["step"], [run["own"] for run in seen], BLUE, label="this run's labels")
    each(three, seen[0]["step"], [run["other"] for run in seen], GREY, label="another seed's", style="--")
    for panel in (one, two, three):
        steps_axis(panel, int(step[-1]))
        panel.legend(fontsize=7, frameon=False)
    return figure
