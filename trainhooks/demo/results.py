"""The end of the demo, one screen: the answer in words, the table, a small plot, where things are, what to run next."""

from __future__ import annotations

import math
import shutil
import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from trainhooks.core.character_plots import plot
from trainhooks.core.printable import draw, sayer, shown
from trainhooks.recording.timing import Cost
from trainhooks.store import Store

HELD_OUT, PERMUTED, ROW_NORM, R2 = (
    "probe.heldout_spearman",
    "probe.permuted_heldout_spearman",
    "probe.row_norm_spearman",
    "probe.heldout_r2",
)
ACTIVATE = Path(sys.prefix) / "bin" / "activate"
ENOUGH = 0.2
"""How far the probe must stand above null and baseline before the answer is yes: an eye's measure, no test."""


def print_results(store: Store, *, cost: Cost, out: Path, suite: bool, console: Console) -> None:
    """Print all of it. `out` is the demo's folder; `suite`: whether it holds checkpoints too."""
    tell = sayer(console, soft_wrap=True)
    loss = store["loss"]
    tell(f"\nloss {loss[np.isfinite(loss)][0]:.2f} -> {loss[-1]:.2f} nats a token")
    for line in answer(store):
        tell(line)
    tell("")
    draw(console, table(store))
    tell("")
    steps = store.steps.tolist()
    curves = {"held out": HELD_OUT, "row norm alone": ROW_NORM, "permuted null": PERMUTED}
    for line in plot(steps, {name: store[variable].tolist() for name, variable in curves.items()}):
        tell(line)
    tell(
        f"\nrecorder: {cost.milliseconds_per_step:.1f} ms a step, {100 * cost.fraction:.1f} % of the loop; beside it "
        f"{cost.writer_milliseconds_per_step:.1f} ms of CPU a step in the sinks' threads"
    )
    for line in where(out, suite=suite):
        tell(line)


def answer(store: Store) -> list[str]:
    """Is frequency there yet, and has the rest converged: two sentences with their figures."""
    last = {name: float(store[name][-1]) for name in (HELD_OUT, PERMUTED, ROW_NORM)}
    margin = last[HELD_OUT] - max(last[PERMUTED], last[ROW_NORM])
    yes = "Yes" if margin > ENOUGH else "Not yet" if math.isfinite(margin) else "Not known"
    lines = [
        f"Is token frequency in the output embedding? {yes}: on tokens that the fit has not seen it orders them by "
        f"frequency with Spearman {last[HELD_OUT]:.2f}; shuffled frequencies give {last[PERMUTED]:.2f}, the rows' norm "
        f"alone {last[ROW_NORM]:.2f}."
    ]
    if not (math.isfinite(margin) and margin > ENOUGH):
        return lines
    half = _first(store[HELD_OUT] >= last[HELD_OUT] / 2)
    gone = _way_gone(store, at=half)
    step = store.steps[half]
    lines.append(
        f"When, and had the rest converged? Half of that was there at step {step} of {store.steps[-1]}"
        + ("." if math.isnan(gone) else f", when the whole model had come {gone:.0%} of its way to its last state.")
    )
    return lines


def table(store: Store) -> Table:
    """The probe beside its references, at five steps."""
    columns = {"Spearman": HELD_OUT, "R2": R2, "row norm alone": ROW_NORM, "permuted null": PERMUTED}
    made = Table("step", *columns, title="frequency probe, held out", box=None)
    steps = store.steps
    middle = [int(np.abs(steps - share * steps[-1]).argmin()) for share in (0.03, 0.1, 0.3)]
    values = {name: store[variable] for name, variable in columns.items()}
    for index in dict.fromkeys([0, *middle, len(steps) - 1]):
        made.add_row(str(steps[index]), *(f"{column[index]:.2f}" for column in values.values()))
    return made


def where(out: Path, *, suite: bool) -> list[str]:
    """Where things are, and what to run next."""
    store, events, model = (shown(out / name) for name in ("run.zarr", "events", "model"))
    lines = ["", f"store   {store}", f"events  {events}", f"model   {model}"]
    lines += [f"suite   {shown(out / 'checkpoints')}"] if suite else []
    found = shutil.which("trainhooks") or not ACTIVATE.is_file()  # which only some environments have
    commands = {} if found else {f". {shown(ACTIVATE)}": "this shell finds the commands then"}
    commands |= {
        f"tensorboard --logdir {shown(out)}": "look at the run: frequency and convergence first",
        f"trainhooks verdict {store}": "did frequency come before the rest? its lead, beside three nulls",
        f"trainhooks figures {store} --out {shown(out / 'figures')}": "the paper's figures, each with its null",
        f"trainhooks report {store} --out {shown(out / 'report.html')}": "one page to send, which works offline",
    }
    return [*lines, "", "Next:", *(f"  {command}\n      {told}" for command, told in commands.items())]


def _first(found: np.ndarray) -> int:
    return int(np.flatnonzero(found)[0])


def _way_gone(store: Store, *, at: int) -> float:
    """The share of the first state's distance to the last one that the whole model had behind it; NaN if not known."""
    name = "convergence.distance_to_final"
    if name not in store.names or "whole" not in store.groups:
        return math.nan
    distance = store[name][:, store.groups.index("whole")]
    return float(1 - distance[at] / distance[0])
