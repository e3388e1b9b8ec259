"""The command that copies a store soundly, also while a run writes it."""

from __future__ import annotations

from pathlib import Path

from trainhooks.cli.base import Flag, command
from trainhooks.core.printable import say, shown


@command
def snapshot(store: str, *, out: Path, kept: Flag = False, attempt: int | None = None) -> None:
    """Copy a store as of its last commit, with its journal, also while a run writes it: a sound backup.

    With --kept, the store as it was before a run went on from an older checkpoint, later records and all.

    Parameters
    ----------
    store
        Path or URL of a store.
    out
        The new folder; it appears when the copy is whole.
    kept
        Copy the records that are kept aside; `inspect` lists them.
    attempt
        With --kept: whose records. By default those that reach furthest.

    Examples
    --------
    trainhooks snapshot run.zarr --out backup.zarr
    trainhooks snapshot run.zarr --kept --out before.zarr
    """
    from trainhooks.store import open_store
    from trainhooks.store.format.kept import kept_place
    from trainhooks.store.maintenance.copying import snapshot as copy_store

    if attempt is not None and not kept:
        raise ValueError(f"--attempt {attempt} chooses among the records that are kept aside; give --kept with it.")
    copy_store(kept_place(store, attempt) if kept else store, out=out)
    copied = open_store(out)
    last = f"last step {copied.steps[-1]}" if len(copied.steps) else "no record yet"
    say(f"{shown(out)}: {len(copied.steps)} records, {last}, {copied.disk_bytes / 1e6:,.1f} MB")
