"""Figures of output embeddings at chosen steps: the probe's scatter, its slope's saliency, rows in two dimensions."""

from __future__ import annotations

import numpy as np

from trainhooks.plots import Curve, Drawing, Panel, saliency_panel, scatter_panel
from trainhooks.plots.dynamics import STEPS
from trainhooks.run_figures import captions
from trainhooks.run_figures.probed import ProbedState
from trainhooks.run_figures.run_numbers import RunNumbers

PRINTED = 4
"""Steps that a printed figure of rows shows; the report's slider has all."""


def chosen_states(states: tuple[ProbedState, ...], *, most: int) -> tuple[ProbedState, ...]:
    """The last, the first, and what lies evenly between in log(1 + step)."""
    if len(states) <= most:
        return states
    if most == 1:
        return states[-1:]
    logs = np.log1p([state.step for state in states])
    wanted = np.linspace(logs[0], logs[-1], most)
    places = sorted({int(np.abs(logs - one).argmin()) for one in wanted})
    return tuple(states[place] for place in places)


def names_of(run: RunNumbers) -> list[str] | None:
    """What the points are called: the tokens' texts, else their ids; None without tokens."""
    if run.tokens is None:
        return None
    ids = run.tokens.shown.tolist()
    return [repr(run.token_texts[token]) if run.token_texts else f"id {token}" for token in ids]


def scatter_drawing(run: RunNumbers, *, most: int = 1) -> Drawing:
    """(d) Held-out predictions over true log frequency, at the last step, or at up to `most` of those read."""
    names = names_of(run)
    panels = [
        scatter_panel(
            state.true,
            state.predicted,
            spearman=state.spearman,
            null=state.permuted_spearman,
            baseline=state.norm_spearman,
            step=state.step,
            names=names,
        )
        for state in chosen_states(run.states, most=most)
    ]
    caption = captions.SCATTER
    return Drawing("scatter", "Probe: predicted against true log frequency", caption, tuple(panels))


def saliency_drawing(run: RunNumbers) -> Drawing:
    """(e) The slope's saliency by dimension, and how concentrated it is over time, beside rotations of the axes."""
    caption = captions.SALIENCY
    if not run.states:
        return Drawing("saliency", "Which dimensions the probe uses", caption, ())
    last = run.states[-1]
    above = saliency_panel(last.saliency, rotated=last.rotated, step=last.step)
    rotated = [state for state in run.states if state.rotated is not None]
    panels = []
    for name in last.concentration:
        found = [state.concentration[name] for state in rotated]
        steps = np.array([state.step for state in rotated])
        own = Curve("own axes", steps, np.array([own for own, _ in found]), "frequency")
        draws = np.stack([null for _, null in found])
        low, high = draws.min(axis=1), draws.max(axis=1)
        null = Curve("rotated (range)", steps, np.median(draws, axis=1), "null", low=low, high=high)
        panels.append(Panel(name, STEPS["log"], name, (own, null), x_scale="log", y_range=(0, 1)))
    return Drawing("saliency", "Which dimensions the probe uses", caption, (above, *panels))


def components_panel(run: RunNumbers, state: ProbedState, *, names: list[str] | None) -> Panel:
    """Rows of one step on their first two principal components, coloured by frequency."""
    assert run.tokens is not None
    x, y = state.components.T
    first, second = (f"PC {n + 1} ({one:.0%} of variance)" for n, one in enumerate(state.component_shares))
    noise = 2 / max(state.rows - 1, 1)
    null = f"{noise:.2f}" if noise > 0.005 else "<0.01"
    title = f"step {state.step:,}\nR² {state.component_r2:.2f} (null {null})"
    shade = -state.true / np.log(10)
    curve = Curve("tokens", x, y, "frequency", points=True, shade=shade, names=names)
    return Panel(title, first, second, (curve,), shade_label="log10 frequency", step=state.step)


def components_drawing(run: RunNumbers, *, most: int = PRINTED) -> Drawing:
    """(h) Rows of the output embedding in two dimensions, coloured by frequency, at up to `most` steps."""
    caption = captions.COMPONENTS
    states = chosen_states(run.states, most=most)
    panels = tuple(components_panel(run, state, names=names_of(run)) for state in states) if run.tokens else ()
    return Drawing("components", "Output embedding in two dimensions", caption, panels, columns=2)
