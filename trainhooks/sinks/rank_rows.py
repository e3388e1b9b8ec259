"""A rank's own rows of the snapshots, written beside the rank that has the store."""

from __future__ import annotations

import queue
import threading
import time
import weakref
from contextlib import suppress
from pathlib import Path

import numpy as np

from trainhooks.core.threads import start_threads
from trainhooks.sinks.base import Record, Sink
from trainhooks.store import PieceWriter

QUEUED_RECORDS = 2
END_SECONDS = 120.0
"""A disk that takes longer for what is queued hangs: nobody waits for it at the end."""
_LOOK_SECONDS = 0.1


class RankRowsSink(Sink):
    """Writes this rank's rows of each snapshot as journal pieces of the store at `path`, in the background.

    The store must be open on rank 0, which folds the pieces; a record counts once all its pieces are there. `write`
    waits where two records wait already; what the disk refuses is raised at the next `write` or at `close`. As in
    `BackgroundWriter`, the training thread takes no lock that an interrupt could leave behind.
    """

    def __init__(
        self, path: str | Path, *, piece: int, pieces: int, rows: tuple[int, int], attempt: int, durability: str
    ) -> None:
        writer = PieceWriter(path, piece=piece, pieces=pieces, rows=rows, attempt=attempt, durability=durability)
        self._work = _Work(writer)
        # a run that ends without close() keeps what it has queued
        weakref.finalize(self, self._work.end)

    def write(self, record: Record) -> None:
        """Queue this rank's part of the record."""
        self._work.raise_once()
        self._work.put(record.step, record.snapshot)

    @property
    def cpu_seconds(self) -> float:
        """See `Sink.cpu_seconds`."""
        return self._work.cpu_seconds

    def settle(self, *, seconds: float) -> bool:
        """See `Sink.settle`."""
        return self._work.settle(seconds=seconds)

    def close(self) -> None:
        """Write what is queued. Raises what the disk refused."""
        self._work.end()
        self._work.raise_once()


class _Work:
    """The queue and its thread; knows nothing of the sink, so that the sink can be collected."""

    def __init__(self, writer: PieceWriter) -> None:
        self._writer = writer
        self._queue: queue.SimpleQueue[tuple[int, np.ndarray | None] | None] = queue.SimpleQueue()
        self._ticks: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._given = self._taken = 0  # records: the caller's thread counts the one, the writing thread the other
        self._error: BaseException | None = None
        self._over = False
        self.cpu_seconds = 0.0
        self._thread = threading.Thread(target=self._run, name="trainhooks-pieces", daemon=True)
        start_threads(self._thread)

    def put(self, step: int, snapshot: np.ndarray | None) -> None:
        """Queue a record's part, as soon as there is room."""
        while self._given - self._taken >= QUEUED_RECORDS and not self._over:
            self._wait()
        self._queue.put((step, snapshot))
        self._given += 1

    def settle(self, *, seconds: float) -> bool:
        """Wait so long at most until nothing is queued; whether everything could be written."""
        until, given = time.monotonic() + seconds, self._given
        while self._taken < given and not self._over:
            if time.monotonic() > until:
                return False
            self._wait()
        return self._error is None

    def end(self) -> None:
        """Write what is queued, and nothing more."""
        self._queue.put(None)
        if threading.current_thread() is not self._thread:
            self.settle(seconds=END_SECONDS)

    def raise_once(self) -> None:
        """Raise what the disk refused."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _wait(self) -> None:
        with suppress(queue.Empty):
            self._ticks.get(timeout=_LOOK_SECONDS)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._error is None:
                try:
                    self._writer.append_piece(item[0], snapshot=item[1])
                except BaseException as error:  # the training thread must hear of it
                    self._error = error
            del item
            self.cpu_seconds = time.thread_time()
            self._taken += 1
            if self._ticks.empty():
                self._ticks.put(None)
        self._over = True
