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


@command
def inspect(store: str, *, json: Flag = False) -> None:
    """Say what is in a store: steps, matrices, metrics, sizes, provenance.

    Parameters
    ----------
    store
        A Zarr store made by a recorder.
    json
        Print JSON instead of text.
    """
    from trainhooks.store import open_store

    pass

    summary = open_store(store).summary()
    if json:
        say(json_format.dumps(summary, indent=2))
    else:
        print_summary(summary)


def print_summary(summary: Mapping[str, Any], *, console: Console | None = None) -> None:
    """Print `Store.summary()` as tables: the run, its variables, its provenance. Descriptions are in the JSON."""
    console = console or plain_console()
    draw(console, Text(shown(summary["path"]), "bold"))
    run = Table(show_header=False, box=None, pad_edge=False)
    for key, value in summary.items():
        if key not in {"path", "variables", "provenance"}:
            run.add_row(key.replace("_", " "), cell(_figure(key, value)))
    draw(console, run)
    columns = (Column("variable", no_wrap=True), "dims", "unit", "first", "last")
    variables = Table(*columns, box=None, pad_edge=False)
    for name, about in summary["variables"].items():
        ends = (f"{about[end]:.4g}" if isinstance(about.get(end), float) else "" for end in ("first", "last"))
        dims = ", ".join(about["dims"])
        variables.add_row(cell(name), cell(dims), cell(about["unit"]), *ends)
    draw(console, variables)
    provenance = Table(show_header=False, box=None, pad_edge=False)
    for key, value in summary["provenance"].items():
        provenance.add_row(cell(key), cell(value))
    draw(console, provenance)


def _figure(key: str, value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and key.endswith("bytes"):
        return human(value)
    if isinstance(value, list) and len(value) > 8:
        return f"{value[0]}, {value[1]} ... {value[-1]} ({len(value)})"
    return str(value)
