"""The figure that explains a run at a glance: six panels, each answering one question."""

from __future__ import annotations

import numpy as np

from trainhooks.plots import Curve, Drawing, Panel, convergence_panel, frequency_panel
from trainhooks.plots.dynamics import STEPS, walk
from trainhooks.plots.probe import scatter_panel
from trainhooks.run_figures import captions
from trainhooks.run_figures.course import correlations, spectrum_drawing
from trainhooks.run_figures.matrices import components_panel, names_of
from trainhooks.run_figures.run_numbers import RunNumbers

GROUPS = ("whole", "embedding", "output_embedding")


def overview_drawing(run: RunNumbers) -> Drawing:
    """Probe, convergence by group, spectrum, predicted against true, rows in 2-D, loss: whichever there are."""
    panels = [frequency_panel(correlations(run)), convergence_panel(_groups(run))]
    panels += spectrum_drawing(run).panels[:1]
    if run.states and run.tokens is not None:
        last, names = run.states[-1], names_of(run)
        said = {"spearman": last.spearman, "null": last.permuted_spearman, "baseline": last.norm_spearman}
        panels.append(scatter_panel(last.true, last.predicted, step=last.step, names=names, **said))
        panels.append(components_panel(run, last, names=names))
    panels.append(loss_panel(run))
    return Drawing(
        "overview", "A run at a glance", captions.OVERVIEW, tuple(panel for panel in panels if panel.drawn), columns=3
    )


def _groups(run: RunNumbers) -> list[Curve]:
    named = [*GROUPS[:2], *(name for name in run.groups if name.startswith("layers.")), GROUPS[2]]
    layers = [name for name in named if name.startswith("layers.")]
    kept = [name for name in named if name not in layers[1:-1]]  # the first and the last layer stand for all
    curves = []
    for name in kept:
        values = run.group(name)
        if values is not None:
            curves.append(Curve(name.replace("_", " "), run.steps, values, "ordered"))
    if curves:
        curves.append(Curve("random walk", run.steps, walk(run.steps, curves[0].y), "null"))
    return curves


def loss_drawing(run: RunNumbers) -> Drawing:
    """The training loss as a figure of its own."""
    panel = loss_panel(run)
    return Drawing("loss", "Training loss", captions.LOSS, (panel,) if panel.drawn else ())


def loss_panel(run: RunNumbers) -> Panel:
    """The training loss, with the loss of a uniform guess over the vocabulary."""
    loss = run.series("loss")
    curves = []
    if loss is not None:
        curves.append(Curve("training loss", run.steps, loss, "frequency"))
        uniform = np.full(len(run.steps), np.log(run.vocab))
        curves.append(Curve("uniform guess", run.steps, uniform, "null"))
    return Panel("loss", STEPS["log"], "loss (nats a token)", tuple(curves), x_scale="log")
