"""The command that writes one step's output embedding to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from trainhooks.cli.base import command
from trainhooks.core.printable import say, shown


@command
def export(store: str, *, step: int, out: Path, format: Literal["safetensors", "npy"] | None = None) -> None:
    """Write one step's output embedding to a file.

    Parameters
    ----------
    store
        Path or URL of a store.
    step
        A step that has a matrix.
    out
        The new file.
    format
        safetensors (the tensor is called output_embedding) or npy, float32 either way; by default as the name says.

    Examples
    --------
    trainhooks export run.zarr --step 300 --out head.safetensors
    trainhooks export run.zarr --step 300 --out head.npy
    """
    from trainhooks.store import open_store
    from trainhooks.store.maintenance.export import export_step

    written = export_step(open_store(store), step=step, out=out, form=format)
    say(f"{shown(written)}: {written.stat().st_size / 1e6:,.1f} MB")
