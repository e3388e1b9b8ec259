"""The command that says what may be said of a run's lead."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, validators

from trainhooks.cli.base import Flag, Several, command
from trainhooks.cli.progress import working
from trainhooks.core.printable import say


@command
def verdict(
    store: Path,
    *more: Path,
    q: Annotated[tuple[float, ...], Several] = (0.5, 0.9),
    draws: Annotated[int, Parameter(validator=validators.Number(gte=19))] = 99,
    max_records: Annotated[int | None, Parameter(validator=validators.Number(gte=3))] = None,
    json: Flag = False,
) -> None:
    """Say whether token frequency came before the rest, beside the references that could explain it away.

    Parameters
    ----------
    store
        A Zarr store made by a recorder.
    more
        Further seeds of the same model.
    q
        Shares of the way at which onsets are read.
    draws
        Labellings of each null, 19 or more.
    max_records
        Thin longer runs to this many log-spaced records.
    json
        Print JSON instead of text.

    Examples
    --------
    trainhooks verdict run.zarr
    trainhooks verdict seed0.zarr seed1.zarr seed2.zarr --json
    """
    from trainhooks.lead.from_store import analyze_store
    from trainhooks.lead.verdict import verdict as make_verdict

    stores, analyses = (store, *more), []
    with working(f"verdict on {store}" + (f" and {len(more)} more" if more else "")) as told:
        for done, path in enumerate(stores, start=1):
            analyses.append(analyze_store(path, q=q, draws=draws, max_records=max_records))
            told(done, len(stores))
        result = make_verdict(analyses)
    say(json_format.dumps(result.to_dict(), indent=2) if json else result.render())
