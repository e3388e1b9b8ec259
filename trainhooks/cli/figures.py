"""The command that draws a run's figures."""

from __future__ import annotations

import json as json_format
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from trainhooks.cli.base import Flag, Several, command
from trainhooks.cli.progress import working
from trainhooks.core.printable import say


@command
def figures(
    store: str,
    *more: str,
    out: Path,
    format: Literal["png", "pdf", "svg"] = "png",
    interventions: Annotated[list[Path] | None, Several] = None,
    lead: Annotated[bool, Parameter(negative="--no-lead")] = True,
    json: Flag = False,
) -> None:
    """Draw every figure of one or several runs, each with its null or baseline, a caption and its numbers as CSV.

    Parameters
    ----------
    store
        Path or URL of a store.
    more
        Further runs, drawn beside it.
    out
        Folder for the pictures, the captions (.txt) and the numbers (.csv); made where it is not there.
    format
        Of the pictures, one column of print wide.
    interventions
        Files that `trainhooks prune --json` or `steer --json` printed: for the curves of deletion and steering.
    lead
        Draw the lead beside its matched labellings, which takes some seconds a run.
    json
        Print JSON instead of text.

    Examples
    --------
    trainhooks figures run.zarr --out figures
    trainhooks figures seed0.zarr seed1.zarr --out figures --format pdf
    trainhooks figures run.zarr --out figures --interventions prune.json steer.json
    """
    from trainhooks.run_figures import figures as draw_figures

    with working(f"figures of {store}" + (f" and {len(more)} more" if more else "")):
        written = draw_figures(store, *more, out=out, format=format, interventions=interventions or (), lead=lead)
    if json:
        found = [{k: None if v is None else str(v) for k, v in asdict(one).items()} for one in written]
        say(json_format.dumps(found, indent=2))
        return
    for one in written:
        say(f"{one.name:18}{one.path if one.path else 'left out: ' + one.left_out}")
