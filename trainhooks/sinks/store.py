"""The Zarr store as a sink."""

from __future__ import annotations

import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np

from trainhooks.sinks.base import Record, Sink, opened
from trainhooks.store import (
    BackgroundWriter,
    Layout,
    Store,
    StoreWriter,
    Writing,
    check_place,
    is_store,
    is_url,
    open_store,
)


class StoreSink(Sink):
    """Writes records, snapshots and sketches to a Zarr store in the background (see `store/SPEC.md`).

    `path` is a folder, or a URL such as `s3://bucket/prefix`.

    `writing` says how: durability, back-pressure, memory, threads (see `Writing`). A record's matrix is not copied
    again: it is the record's own, and nobody may change it.
    """

    def __init__(self, path: str | Path, *, mode: str = "create", writing: Writing | None = None) -> None:
        self.path = _location(path)
        self.mode = mode
        self.writing = Writing() if writing is None else writing
        self.pieces = 1  # ranks that write each record; set before open()
        self.recorded: int | None = None  # the last record that the run had made where it goes on; set before open()
        self._writer: BackgroundWriter | None = None

    @property
    def attempt(self) -> int:
        """How often the run was resumed; what other ranks write carries it."""
        return opened(self._writer, "StoreSink").attempt

    @property
    def durable_step(self) -> int | None:
        """The last step up to which every record is durable; None where there is none."""
        return None if self._writer is None else self._writer.durable_step

    @property
    def cpu_seconds(self) -> float:
        """See `Sink.cpu_seconds`."""
        return 0.0 if self._writer is None else self._writer.cpu_seconds

    @property
    def dropped(self) -> int:
        """Records left out because the queue was full."""
        return 0 if self._writer is None else self._writer.dropped

    @property
    def folder(self) -> Path | None:
        """The local folder; None where the store has a URL."""
        return self.path if isinstance(self.path, Path) else None

    @property
    def exists(self) -> bool:
        """Whether there is a store at this path already."""
        return is_store(self.path)

    def check(self) -> None:
        """Raise StoreError where the store cannot be made at this path; nothing is written."""
        # a store that is to be resumed and is gone is made anew, where a state says at which step
        begins = self.mode == "resume" and not self.exists
        check_place(self.path, mode="create" if begins else self.mode)

    def open(self, layout: Layout, *, restart_step: int | None = None) -> None:
        """Lay the store out, or, where `mode` is "resume", open it to go on after `restart_step`."""
        writer = StoreWriter(
            self.path,
            layout,
            mode=self.mode,
            restart_step=restart_step if self.mode == "resume" else None,
            recorded=self.recorded if self.mode == "resume" else None,
            durability=self.writing.durability,
            pieces=self.pieces,
            threads=self.writing.fold_threads,
        )
        self._writer = BackgroundWriter(writer, writing=self.writing)
        # a run that ends without close() keeps what it has queued
        weakref.finalize(self, self._writer.detach)

    def write(self, record: Record) -> None:
        """Queue the record; `durable_step` says when it is on disk."""
        opened(self._writer, "StoreSink").append(
            record.step,
            record.values,
            sketch=record.sketch,
            snapshot=record.snapshot,
            label_counts=record.label_counts,
            rows=record.rows if record.snapshot is not None else None,
            keep=True,
        )

    def settle(self, *, seconds: float) -> bool:
        """See `Sink.settle`; the other ranks' pieces count, too."""
        if self._writer is None or (queued := self._writer.queued_step) is None:
            return True
        until = time.monotonic() + seconds
        if not self._writer.settle(seconds=seconds):
            return False
        while self.pieces > 1 and ((last := self.durable_step) is None or last < queued):
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
        return True

    def read(self) -> Store:
        """The store as it is with all records that were written so far; waits until they are durable."""
        if self._writer is not None:
            self._writer.flush()
        return open_store(self.path)

    def wait(self, step: int, *, seconds: float) -> bool:
        """Wait until every rank's piece of the record of `step` is there; False where it is not after `seconds`."""
        until = time.monotonic() + seconds
        if self._writer is not None:
            self._writer.flush()
        while (last := self.durable_step) is None or last < step:
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
        return True

    def finish(self, values: Mapping[str, np.ndarray]) -> None:
        """Write the whole-run variables."""
        opened(self._writer, "StoreSink").finish(values)

    def close(self) -> None:
        """Fold what is left and mark the store complete."""
        if self._writer is not None:
            self._writer.close()

    def leave(self) -> None:
        """Make durable what was written and let the store go, not complete: the run will go on."""
        if self._writer is not None:
            self._writer.detach()


def _location(path: str | Path) -> str | Path:
    """A local folder as an absolute path, also where it was named by a `file://` URL; another URL as it is."""
    if is_url(path):  # it stays text: a path would lose one of its slashes
        parts = urlsplit(str(path))
        if parts.scheme != "file":
            return str(path)
        path = url2pathname(parts.path)
    return Path(path).expanduser().absolute()
