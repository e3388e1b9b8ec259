"""The command that says what is in a store."""

from __future__ import annotations

import json as json_format
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from trainhooks.cli.base import Flag, command
from trainhooks.core.formatting import human
from trainhooks.core.printable import cell, draw, plain_console, say, shown

FIRST = (
    "loss",
    "probe.heldout_spearman",
    "probe.permuted_heldout_spearman",
    "probe.row_norm_spearman",
    "probe.heldout_r2",
    "spectrum.effective_rank_energy",
    "convergence.distance_to_final",
    "convergence.relative_step",
    "recorder.milliseconds",
)
"""The variables that answer first; all others are behind --full."""
_SHORT, _MOST = 60, 16


@command
def inspect(store: str, *, full: Flag = False, json: Flag = False) -> None:
    """Say what is in a store: steps, matrices, metrics, sizes, provenance.

    On one screen: of the variables those that answer first, of the provenance what is short.

    Parameters
    ----------
    store
        A Zarr store made by a recorder.
    full
        Print every variable, and all of the provenance.
    json
        Print JSON instead of text: everything, with descriptions.

    Examples
    --------
    trainhooks inspect run.zarr
    trainhooks inspect run.zarr --full
    trainhooks inspect s3://bucket/run.zarr --json
    """
    from trainhooks.store import open_store

    summary = open_store(store).summary()
    if json:
        say(json_format.dumps(summary, indent=2))
    else:
        print_summary(summary, full=full)


def print_summary(summary: Mapping[str, Any], *, console: Console | None = None, full: bool = True) -> None:
    """Print `Store.summary()` as tables: the run, its variables, its provenance. Descriptions are in the JSON.

    Not `full`: what fits on one screen, and how much was left out.
    """
    console = console or plain_console()
    draw(console, Text(shown(summary["path"]), "bold"))
    run = Table(show_header=False, box=None, pad_edge=False)
    for key, value in summary.items():
        if key not in {"path", "variables", "provenance"} and (full or _tells(key, value)):
            run.add_row(key.replace("_", " "), cell(_figure(key, value)))
    draw(console, run)
    columns = (Column("variable", no_wrap=True), "dims", "unit", "first", "last")
    variables = Table(*columns, box=None, pad_edge=False)
    chosen = {name: about for name, about in summary["variables"].items() if full or name in FIRST}
    for name, about in chosen.items():
        ends = (f"{about[end]:.4g}" if isinstance(about.get(end), float) else "" for end in ("first", "last"))
        dims = ", ".join(about["dims"])
        variables.add_row(cell(name), cell(dims), cell(about["unit"]), *ends)
    draw(console, variables)
    provenance = Table(show_header=False, box=None, pad_edge=False)
    said = {key: value for key, value in summary["provenance"].items() if full or len(str(value)) <= _SHORT}
    said = said if full else dict(list(said.items())[:_MOST])
    for key, value in said.items():
        provenance.add_row(cell(key), cell(value))
    draw(console, provenance)
    left = len(summary["variables"]) - len(chosen), len(summary["provenance"]) - len(said)
    if any(left):
        draw(
            console,
            Text(f"not shown: {left[0]} variables, {left[1]} of the provenance. All: trainhooks inspect --full"),
        )


def _tells(key: str, value: object) -> bool:
    """Whether a row of the run's table says something beside what is there in every store."""
    if key in {"shapes", "dtypes", "format"}:
        return False
    return value not in (None, 0, [], {}) or key in {"records", "snapshots"}


def _figure(key: str, value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and key.endswith("bytes"):
        return human(value)
    if isinstance(value, list) and len(value) > 8:
        return f"{value[0]}, {value[1]} ... {value[-1]} ({len(value)})"
    return str(value)
