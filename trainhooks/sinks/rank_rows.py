"""A rank's own rows of the snapshots, written beside the rank that has the store."""

from __future__ import annotations

import weakref
from pathlib import Path

import numpy as np

from trainhooks.sinks.background_work import BackgroundWork
from trainhooks.sinks.base import Record, Sink
from trainhooks.store import PieceWriter

QUEUED_RECORDS = 2


class RankRowsSink(Sink):
    """Writes this rank's rows of each snapshot as journal pieces of the store at `path`, in the background.

    The store must be open on rank 0, which folds the pieces; a record counts once all its pieces are there. `write`
    waits where two records wait already; what the disk refuses is raised at the next `write` or at `close`.
    """

    def __init__(
        self, path: str | Path, *, piece: int, pieces: int, rows: tuple[int, int], attempt: int, durability: str
    ) -> None:
        writer = PieceWriter(path, piece=piece, pieces=pieces, rows=rows, attempt=attempt, durability=durability)

        def append(piece: tuple[int, np.ndarray | None]) -> None:
            writer.append_piece(piece[0], snapshot=piece[1])

        self._work = BackgroundWork(append, name="trainhooks-pieces", most=QUEUED_RECORDS)
        # a run that ends without close() keeps what it has queued
        weakref.finalize(self, self._work.end)

    def write(self, record: Record) -> None:
        """Queue this rank's part of the record."""
        self._work.raise_once()
        self._work.put((record.step, record.snapshot))

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
