"""Figures of a run's course: frequency and convergence against the step, by layer, by frequency bin, the spectrum."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainhooks.plots import Curve, Drawing, Panel, convergence_panel, frequency_panel
from trainhooks.plots.dynamics import DISTANCE, STEPS, walk
from trainhooks.plots.series import Role, Scale
from trainhooks.run_figures import captions
from trainhooks.run_figures.run_numbers import RunNumbers

PROBE: tuple[tuple[str, str, str, Role], ...] = (
    ("probe.heldout_spearman", "spearman", "probe", "frequency"),
    ("probe.row_norm_spearman", "norm_spearman", "row norm alone", "baseline"),
    ("probe.permuted_heldout_spearman", "permuted_spearman", "permuted null", "null"),
)
"""Variable, attribute of a probed matrix, label and role."""
OF_HEAD = "output embedding: distance to final"
RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def dynamics_drawing(runs: Sequence[RunNumbers], *, scale: Scale = "log") -> Drawing:
    """(a) Held-out frequency correlation above, convergence below, of one or several runs."""
    above = [curve for number, run in enumerate(runs) for curve in correlations(run, number, several=len(runs) > 1)]
    below = [curve for number, run in enumerate(runs) for curve in _convergence(run, number, several=len(runs) > 1)]
    if below:  # of the first run that has distances
        own = [curve for curve in below if curve.run == below[0].run][-1]
        below.append(Curve("random walk", own.x, walk(own.x, own.y), "null", run=own.run))
    caption = captions.DYNAMICS.format(scale="a log(1 + step)" if scale == "log" else "a linear")
    name = "dynamics" if scale == "log" else "dynamics_linear"
    panels = (
        frequency_panel(above, scale=scale),
        convergence_panel(below, scale=scale, y_label=OF_HEAD if len(runs) > 1 else DISTANCE),
    )
    return Drawing(name, "Training dynamics", caption, _drawn(panels))


def correlations(run: RunNumbers, number: int = 0, *, several: bool = False) -> list[Curve]:
    """The probe's held-out Spearman with baseline and null: of every record, else of the stored matrices."""
    found: list[Curve] = []
    for name, attribute, label, role in PROBE:
        x, y = run.steps, run.series(name)
        if y is None and run.states:
            x = np.array([state.step for state in run.states])
            y = np.array([getattr(state, attribute) for state in run.states])
        if y is None:
            continue
        found.append(Curve(run.label if several and role == "frequency" else label, x, y, role, run=number))
    return found


def _convergence(run: RunNumbers, number: int, *, several: bool) -> list[Curve]:
    found = []
    for group, label in (("whole", "whole model"), ("output_embedding", "output embedding")):
        values = run.group(group)
        if values is not None and not (
            several and group != "output_embedding" and run.group("output_embedding") is not None
        ):
            found.append(Curve(run.label if several else label, run.steps, values, "convergence", run=number))
    return found


def layers_drawing(run: RunNumbers) -> Drawing:
    """(b) The same by layer: each group's distance to its final state, under the probe's correlation."""
    names = [name for name in run.groups if name not in ("whole", "other")]
    curves = []
    for name in names:
        values = run.group(name)
        if values is not None:
            curves.append(Curve(name.replace("_", " "), run.steps, values, "ordered"))
    whole = run.group("whole")
    if curves and whole is not None:
        curves.append(Curve("random walk", run.steps, walk(run.steps, whole), "null"))
    caption = captions.LAYERS
    panels = (frequency_panel(correlations(run)), convergence_panel(curves))
    return Drawing("layers", "Convergence by layer", caption, _drawn(panels))


def bins_drawing(run: RunNumbers) -> Drawing:
    """(c) By frequency bin: the probe's held-out error, and the rows' distance to their final state."""
    caption = captions.BINS
    if run.tokens is None or not run.states:
        return Drawing("bins", "By token frequency", caption, _drawn(_bins_stored(run)))
    steps = np.array([state.step for state in run.states])
    errors = np.stack([state.error_by_bin for state in run.states])
    ways = np.stack([state.distance_by_bin for state in run.states])
    spread = float(run.tokens.y[run.tokens.mask].std())
    labels = [f"count {label}" for label in run.tokens.bin_labels]
    above = [Curve(label, steps, errors[:, b], "ordered") for b, label in enumerate(labels)]
    above.append(Curve("no information (sd)", steps, np.full(len(steps), spread), "null"))
    below = [Curve(label, steps, ways[:, b], "ordered") for b, label in enumerate(labels)]
    whole = run.group("output_embedding")
    start = ways[0][np.isfinite(ways[0])].mean() if whole is None else whole[np.isfinite(whole)][0]
    below.append(Curve("random walk", run.steps, walk(run.steps, np.full(len(run.steps), start)), "null"))
    panels = (
        Panel(
            "error by bin",
            STEPS["log"],
            "held-out error (nats)",
            tuple(above),
            x_scale="log",
            y_range=_from_zero(above),
        ),
        convergence_panel(below, y_label="relative distance to final"),
    )
    return Drawing("bins", "By token frequency", caption, _drawn(panels))


def _bins_stored(run: RunNumbers) -> tuple[Panel, ...]:
    """Without matrices: cosines to the initial or the final rows by bin, as the store keeps them."""
    panels = []
    for name, label in (
        ("convergence.head_cosine_to_final_by_bin", "cosine to final rows"),
        ("geometry.cosine_to_initial_by_count", "cosine to initial rows"),
    ):
        values = run.series(name)
        if values is not None:
            curves = [
                Curve(f"count from {10**b:,}", run.steps, values[:, b], "ordered") for b in range(values.shape[1])
            ]
            curves.append(Curve("identical (1)", run.steps, np.ones(len(run.steps)), "null"))
            panels.append(Panel(label, STEPS["log"], label, tuple(curves), x_scale="log"))
    return tuple(panels)


def spectrum_drawing(run: RunNumbers) -> Drawing:
    """(g) Singular values of the centred output embedding over time, and its effective ranks."""
    caption = captions.SPECTRUM
    steps, values = run.steps, run.series("spectrum.singular_values")
    rows = run.vocab
    if values is None and run.states:
        steps = np.array([state.step for state in run.states])
        values, rows = np.stack([state.singular_values for state in run.states]), run.states[-1].rows
    if values is None:
        return Drawing("spectrum", "Spectrum", caption, ())
    seen = np.isfinite(values).all(axis=1)
    steps, values = steps[seen], values[seen]
    dim = values.shape[1]
    ranks = [rank for rank in RANKS if rank < dim] + [dim]
    curves = [Curve(f"rank {rank}", steps, _positive(values[:, rank - 1]), "ordered") for rank in ranks]
    element = np.linalg.norm(values, axis=1) / np.sqrt(rows * dim)
    for sign, label in ((1, "largest of Gaussian"), (-1, "smallest of Gaussian")):
        curves.append(Curve(label, steps, _positive(element * (np.sqrt(rows) + sign * np.sqrt(dim))), "null"))
    above = Panel("singular values", STEPS["log"], "singular value", tuple(curves), x_scale="log", y_scale="log10")
    below = Panel(
        "ranks", STEPS["log"], "effective rank", tuple(_ranks(steps, values)), x_scale="log", y_range=(0, 1.05 * dim)
    )
    return Drawing("spectrum", "Spectrum over time", caption, _drawn((above, below)))


def _ranks(steps: np.ndarray, values: np.ndarray) -> list[Curve]:
    def effective(weights: np.ndarray) -> np.ndarray:
        total = weights.sum(axis=1, keepdims=True)
        share = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
        found: np.ndarray = np.exp(-(share * np.log(np.where(share > 0, share, 1.0))).sum(axis=1))
        return found

    top = np.square(values[:, 0])
    stable = np.divide(np.square(values).sum(axis=1), top, out=np.full(len(top), np.nan), where=top > 0)
    return [
        Curve("amplitude", steps, effective(values), "frequency"),
        Curve("energy", steps, effective(np.square(values)), "convergence"),
        Curve("stable rank", steps, stable, "baseline"),
        Curve("dimension", steps, np.full(len(steps), float(values.shape[1])), "null"),
    ]


def _positive(values: np.ndarray) -> np.ndarray:
    """NaN for what has no place on a log axis."""
    return np.where(values > 0, values, np.nan)


def _from_zero(curves: Sequence[Curve]) -> tuple[float, float]:
    highest = max((float(curve.finite.max()) for curve in curves if curve.drawn), default=1.0)
    return 0.0, 1.08 * highest


def _drawn(panels: Sequence[Panel]) -> tuple[Panel, ...]:
    return tuple(panel for panel in panels if panel.drawn)
