"""The command that compares a store's files with what was written, and repairs what it can."""

from __future__ import annotations

import json as json_format
import sys

from trainhooks.cli.base import FOUND, Flag, command
from trainhooks.cli.progress import working
from trainhooks.core.printable import say, shown


@command
def verify(store: str, *, repair: Flag = False, json: Flag = False) -> None:
    """Compare every byte of a store with what was written; exit code 0 where it is whole, 2 where it is not.

    Parameters
    ----------
    store
        Path or URL of a store.
    repair
        First drop what is torn, settle what was interrupted, roll back to the last commit and fold the journal.
    json
        Print JSON instead of text.

    Examples
    --------
    trainhooks verify run.zarr
    trainhooks verify run.zarr --repair
    trainhooks verify s3://bucket/run.zarr --json
    """
    from trainhooks.store.maintenance.repair import repair as repair_store
    from trainhooks.store.maintenance.verify import verify as verify_store

    with working(f"verifying {store}"):
        done = repair_store(store) if repair else []
        found = verify_store(store)
    if json:
        say(json_format.dumps({**found.to_dict(), "repaired": done}, indent=2))
    else:
        for line in done:
            say(shown(f"repaired: {line}"))
        for kind, findings in (("damaged", found.problems), ("note", found.notes)):
            for finding in findings:
                say(shown(f"{kind}: {finding}"))
        state = "whole" if found.sound else f"damaged in {len(found.problems)} places"
        closed = "closed" if found.complete else "not closed"
        say(
            f"{found.path} is {state}: {found.files} files, {closed}, last step {found.last_step}, "
            f"{found.journal} records in the journal"
        )
    sys.exit(0 if found.sound else FOUND)
