"""The command that makes TensorBoard's files from stores."""

from __future__ import annotations

import json as json_format
import math
from pathlib import Path
from typing import TYPE_CHECKING

from trainhooks.cli.base import Flag, command
from trainhooks.cli.progress import working
from trainhooks.core.printable import say, shown

if TYPE_CHECKING:
    from trainhooks.sinks.run_events import Said
    from trainhooks.store import Store


@command
def tensorboard(
    store: str, *more: str, logdir: Path, no_verdict: Flag = False, no_pictures: Flag = False, json: Flag = False
) -> None:
    """Make TensorBoard's files from stores, several runs beside each other: what a live run writes, and its verdict.

    Each run gets a folder below --logdir; what an earlier call left there is replaced. A store that a run is writing
    is taken as it is now.

    Parameters
    ----------
    store
        Path or URL of a store.
    more
        Further stores, each a run of its own.
    logdir
        Folder for the runs, to give to `tensorboard --logdir`.
    no_verdict
        Leave the verdict out: it reads every matrix, which takes most of the time.
    no_pictures
        Leave the pictures out.
    json
        Print JSON instead of text.

    Examples
    --------
    trainhooks tensorboard run.zarr --logdir events
    trainhooks tensorboard seed0.zarr seed1.zarr --logdir events --no-verdict
    """
    from trainhooks.sinks.pictures import WHEN
    from trainhooks.sinks.run_events import run_names, write_run
    from trainhooks.store import open_store

    opened = [open_store(path) for path in (store, *more)]
    made = []
    for one, name in zip(opened, run_names([store, *more]), strict=True):
        said = None
        if not no_verdict:
            with working(f"verdict on {name}"):
                said = _verdict(one)
        with working(f"writing events of {name}") as told:
            left = write_run(one, logdir / name, said=said, pictures=None if no_pictures else WHEN, progress=told)
        made.append({"run": name, "folder": str(logdir / name), "records": len(one.steps), "left_out": left})
    if json:
        say(json_format.dumps(made, indent=2))
        return
    for about in made:
        say(shown(f"{about['folder']}: {about['records']} records"))
    say(shown(f"look at them: tensorboard --logdir {logdir}"))


def _verdict(store: Store) -> Said:
    """The verdict in words and figures; where there can be none, why."""
    from trainhooks.lead.from_store import analyze_store
    from trainhooks.lead.verdict import verdict
    from trainhooks.sinks.run_events import Said
    from trainhooks.sinks.run_texts import block

    try:
        found = verdict([analyze_store(store)])
    except ValueError as error:
        return Said(block([f"There is no verdict: {error}"]))
    first = found.shares[0]
    figures = {f"lead at q {first.q:g}": first.lead.mean, "excess lead": first.excess.mean, "largest p": first.p[0]}
    return Said(block(found.render().splitlines()), {name: x for name, x in figures.items() if math.isfinite(x)})
