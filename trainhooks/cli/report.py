"""The command that writes a run's report."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from trainhooks.cli.base import Flag, Several, command
from trainhooks.cli.progress import working
from trainhooks.core.formatting import human
from trainhooks.core.printable import say, shown


@command
def report(
    store: str,
    *more: str,
    out: Path,
    title: str = "",
    interventions: Annotated[list[Path] | None, Several] = None,
    lead: Annotated[bool, Parameter(negative="--no-lead")] = True,
    json: Flag = False,
) -> None:
    """Write one HTML page on one or several runs: verdict, interactive plots, provenance, cost, methods. Works offline.

    Parameters
    ----------
    store
        Path or URL of a store.
    more
        Further runs to compare with it: seeds, sizes, analysed suites.
    out
        The page's file; one that is there is replaced.
    title
        Its heading; by default the runs' names.
    interventions
        Files that `trainhooks prune --json` or `steer --json` printed: for the curves of deletion and steering.
    lead
        Say the verdict and draw the lead beside its matched labellings, which takes some seconds a run.
    json
        Print JSON instead of text.

    Examples
    --------
    trainhooks report run.zarr --out report.html
    trainhooks report seed0.zarr seed1.zarr suite.zarr --out report.html --title "Two seeds and a suite"
    """
    from trainhooks.html_report import write_report

    with working(f"report on {store}" + (f" and {len(more)} more" if more else "")):
        written = write_report(store, *more, out=out, title=title, interventions=interventions or (), lead=lead)
    size = written.stat().st_size
    found = {"path": str(written), "bytes": size}
    say(
        json_format.dumps(found)
        if json
        else f"{shown(written)} ({human(size)}): open it in a browser, no network needed"
    )
