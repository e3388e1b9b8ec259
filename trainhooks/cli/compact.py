"""The command that makes a store smaller once its run has ended."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter, validators

from trainhooks.cli.base import command
from trainhooks.cli.progress import working
from trainhooks.core.printable import say, shown


@command
def compact(
    store: Path,
    *,
    profile: Literal["live", "archive"] = "archive",
    codec: Literal["blosc", "pcodec"] = "blosc",
    out: Path | None = None,
    threads: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 2,
) -> None:
    """Compress a store's output embeddings anew: every number stays as it is, and so does every reader.

    It may be stopped at any moment, and run again. A store that a run is writing is refused.

    Parameters
    ----------
    store
        A Zarr store whose run has ended.
    profile
        archive is smaller and slower to write; live is what a run writes.
    codec
        pcodec is smaller still, and writes a copy that fewer programs read.
    out
        Where that copy goes.
    threads
        How many compress at once; pcodec's copy is written by one.

    Examples
    --------
    trainhooks compact run.zarr
    trainhooks compact run.zarr --codec pcodec --out copy.zarr
    """
    from trainhooks.store.format.profiles import profile_named
    from trainhooks.store.maintenance.compact import compact as compact_store
    from trainhooks.store.maintenance.compact import copy_with_pcodec

    if (codec == "pcodec") != (out is not None):
        raise ValueError(f"got --codec {codec} and --out {out}; pcodec writes a copy and needs --out, blosc does not.")
    if out is not None:
        with working(f"copying {store}") as told:
            size = copy_with_pcodec(store, out=out, progress=told)
        say(f"{shown(out)}: {size / 1e6:,.1f} MB. Reading it takes zarr-python and pcodec.")
        return
    with working(f"compacting {store}") as told:
        done = compact_store(store, profile=profile_named(profile), threads=threads, progress=told)
    say(
        f"{shown(store)}: {done.rewritten} shards written anew, {done.kept} left as they were; "
        f"{done.bytes_before / 1e6:,.1f} MB before, {done.bytes_after / 1e6:,.1f} MB after."
    )
