"""The Zarr store as a sink."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from trainhooks.sinks.base import Record, Sink
from trainhooks.store import Layout, StoreWriter, check_place


class StoreSink(Sink):
    """Writes records, snapshots and sketches to the Zarr store at `path` (see `store/SPEC.md`)."""

    def __init__(self, path: str | Path, *, mode: str = "create") -> None:
        self.path = Path(path).expanduser()
        self.mode = mode
        self._writer: StoreWriter | None = None

    def check(self) -> None:
        """Raise StoreError where the store cannot be made at this path; nothing is written."""
        check_place(self.path, mode=self.mode)

    def open(self, layout: Layout, *, restart_step: int | None = None) -> None:
        """Lay the store out, or open it to go on after `restart_step`."""
        self._writer = StoreWriter(self.path, layout, mode=self.mode, restart_step=restart_step)

    def write(self, record: Record) -> None:
        """Append the record; it is on disk when this returns."""
        assert self._writer is not None, "open() comes first"
        self._writer.append(
            record.step,
            record.values,
            sketch=record.sketch,
            snapshot=record.snapshot,
            label_counts=record.label_counts,
        )

    def finish(self, values: Mapping[str, np.ndarray]) -> None:
        """Write the whole-run variables."""
        assert self._writer is not None, "open() comes first"
        self._writer.finish(values)

    def close(self) -> None:
        """Fold what is left and mark the store complete."""
        if self._writer is not None:
            self._writer.close()
