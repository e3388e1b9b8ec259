"""The Zarr store as a sink."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from trainhooks.sinks.base import Record, Sink
from trainhooks.store import BackgroundWriter, Layout, Store, StoreWriter, Writing, check_place, open_store


class StoreSink(Sink):
    """Writes records, snapshots and sketches to the Zarr store at `path` (see `store/SPEC.md`), in the background.

    `writing` says how: durability, back-pressure, memory, threads (see `Writing`). A record's matrix is not copied
    again: it is the record's own, and nobody may change it.
    """

    def __init__(self, path: str | Path, *, mode: str = "create", writing: Writing | None = None) -> None:
        self.path = Path(path).expanduser()
        self.mode = mode
        self.writing = Writing() if writing is None else writing
        self._writer: BackgroundWriter | None = None

    @property
    def durable_step(self) -> int | None:
        """The last step up to which every record is durable; None where there is none."""
        return None if self._writer is None else self._writer.durable_step

    @property
    def dropped(self) -> int:
        """Records left out because the queue was full."""
        return 0 if self._writer is None else self._writer.dropped

    def check(self) -> None:
        """Raise StoreError where the store cannot be made at this path; nothing is written."""
        check_place(self.path, mode=self.mode)

    def open(self, layout: Layout, *, restart_step: int | None = None) -> None:
        """Lay the store out, or open it to go on after `restart_step`."""
        writer = StoreWriter(
            self.path,
            layout,
            mode=self.mode,
            restart_step=restart_step,
            durability=self.writing.durability,
            threads=max(1, self.writing.threads - 1),
        )
        self._writer = BackgroundWriter(writer, writing=self.writing)
        # a run that ends without close() keeps what it has queued
        weakref.finalize(self, self._writer.leave)

    def write(self, record: Record) -> None:
        """Queue the record; `durable_step` says when it is on disk."""
        assert self._writer is not None, "open() comes first"
        self._writer.append(
            record.step,
            record.values,
            sketch=record.sketch,
            snapshot=record.snapshot,
            label_counts=record.label_counts,
            keep=True,
        )

    def read(self) -> Store:
        """The store as it is with all records that were written so far; waits until they are durable."""
        if self._writer is not None:
            self._writer.flush()
        return open_store(self.path)

    def finish(self, values: Mapping[str, np.ndarray]) -> None:
        """Write the whole-run variables."""
        assert self._writer is not None, "open() comes first"
        self._writer.finish(values)

    def close(self) -> None:
        """Fold what is left and mark the store complete."""
        if self._writer is not None:
            self._writer.close()
