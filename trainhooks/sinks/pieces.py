"""A rank's own rows of the snapshots, written beside the rank that has the store."""

from __future__ import annotations

import queue
import threading
import weakref
from pathlib import Path

import numpy as np

from trainhooks.sinks.base import Record, Sink
from trainhooks.store import PieceWriter

QUEUED_RECORDS = 2

Waiting = queue.Queue[tuple[int, np.ndarray | None] | None]


class PieceSink(Sink):
    """Writes this rank's rows of each snapshot as journal pieces of the store at `path`, in the background.

    The store must be open on rank 0, which folds the pieces; a record counts once all its pieces are there. `write`
    waits where two records wait already; what the disk refuses is raised at the next `write` or at `close`.
    """

    def __init__(
        self, path: str | Path, *, piece: int, pieces: int, rows: tuple[int, int], attempt: int, durability: str
    ) -> None:
        self._writer = PieceWriter(path, piece=piece, pieces=pieces, rows=rows, attempt=attempt, durability=durability)
        self._queue: Waiting = queue.Queue(QUEUED_RECORDS)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._write, name="trainhooks-pieces", daemon=True)
        self._thread.start()
        # a run that ends without close() keeps what it has queued
        weakref.finalize(self, _end, self._queue, self._thread)

    def write(self, record: Record) -> None:
        """Queue this rank's part of the record."""
        self._raise_once()
        self._queue.put((record.step, record.snapshot))

    def close(self) -> None:
        """Write what is queued. Raises what the disk refused."""
        _end(self._queue, self._thread)
        self._raise_once()

    def _write(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._error is None:
                try:
                    self._writer.append_piece(item[0], snapshot=item[1])
                except BaseException as error:  # the training thread must hear of it
                    self._error = error

    def _raise_once(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error


def _end(waiting: Waiting, thread: threading.Thread) -> None:
    waiting.put(None)
    thread.join()
