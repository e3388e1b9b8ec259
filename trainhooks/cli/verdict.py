"""The command that says what may be said of a run's lead."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, validators

from trainhooks.cli.base import Flag, Several, command
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
    """
    from trainhooks.lead.from_store import analyze_store
    from trainhooks.lead.verdict import verdict as make_verdict

    analyses = [analyze_store(path, q=q, draws=draws, max_records=max_records) for path in (store, *more)]
    result = make_verdict(analyses)
    say(json_format.dumps(result.to_dict(), indent=2) if json else result.render())
