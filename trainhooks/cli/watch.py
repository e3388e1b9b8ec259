"""The command that watches a running store from another terminal."""

from __future__ import annotations

import json as json_format
import time
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter, validators

from trainhooks.cli.base import Flag, command
from trainhooks.core.printable import plain_console, say

if TYPE_CHECKING:
    from trainhooks.store import Store


@command
def watch(
    store: str,
    *,
    every: Annotated[float, Parameter(validator=validators.Number(gt=0))] = 5.0,
    once: Flag = False,
    json: Flag = False,
) -> None:
    """Watch a run by its store, also one that is written elsewhere: step, frequency beside its null, convergence, cost.

    Nothing is written, and the run does not notice. It ends with the run, or with Ctrl-C.

    Parameters
    ----------
    store
        Path or URL of a store.
    every
        Seconds between two looks.
    once
        Look once and end, for scripts; how fast the run is takes two looks.
    json
        Print a line of JSON at each look.

    Examples
    --------
    trainhooks watch run.zarr
    trainhooks watch s3://bucket/run.zarr --every 30
    trainhooks watch run.zarr --once --json
    """
    from trainhooks.store import open_store
    from trainhooks.store.reading.status import status

    opened = open_store(store, follow=True)
    if once or json:
        _print(opened, every=every, once=once, json=json)
        return
    from rich.live import Live
    from rich.text import Text

    seen, at = status(opened), time.monotonic()
    with Live(Text(seen.render()), console=plain_console(), auto_refresh=False) as live:
        while not seen.complete:
            time.sleep(every)
            opened.refresh()
            seen, at = status(opened, before=seen, seconds=time.monotonic() - at), time.monotonic()
            live.update(Text(seen.render()), refresh=True)


def _print(opened: Store, *, every: float, once: bool, json: bool) -> None:
    """Each look as lines of its own."""
    from trainhooks.store.reading.status import status

    seen, at = status(opened), time.monotonic()
    while True:
        say(json_format.dumps(seen.to_dict()) if json else seen.render(), end="\n" if json else "")
        if once or seen.complete:
            return
        time.sleep(every)
        opened.refresh()
        seen, at = status(opened, before=seen, seconds=time.monotonic() - at), time.monotonic()
