"""Writing one rank's pieces of a run's records."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trainhooks.store.format.journal import write_piece
from trainhooks.store.format.layout import SNAPSHOT
from trainhooks.store.format.root import read_root
from trainhooks.store.format.validation import record_arrays, rounded
from trainhooks.store.storage.base import Storage
from trainhooks.store.storage.opening import open_storage


class PieceWriter:
    """Writes one rank's pieces of a run's records, beside the `StoreWriter` that writes piece 0 and folds.

    `piece` is 1 to `pieces` - 1, `rows` (start, stop) are the rows of the matrix that this rank holds. `attempt` is the
    store writer's. Nothing is gathered: a record counts once all its pieces are in place.

    Raises ValueError for numbers that make no sense, StoreError where there is no store at `path`.
    """

    def __init__(
        self,
        path: str | Path | Storage,
        *,
        piece: int,
        pieces: int,
        rows: tuple[int, int],
        attempt: int,
        durability: str = "process",
    ) -> None:
        if not 0 <= rows[0] <= rows[1]:
            raise ValueError(f"got rows {rows[0]}:{rows[1]}; needed 0 <= start <= stop.")
        if not 1 <= piece < pieces:
            raise ValueError(f"got piece {piece} of {pieces}; piece 0 is the store writer's, others are 1 and more.")
        self._storage = open_storage(path, durability=durability)
        self._layout = read_root(self._storage).layout
        if rows[1] > self._layout.vocab:
            raise ValueError(f"got rows {rows[0]}:{rows[1]}; the output embedding has {self._layout.vocab} of them.")
        self._piece, self._pieces, self._rows, self._attempt = piece, pieces, rows, attempt

    def append_piece(
        self,
        step: int,
        *,
        snapshot: np.ndarray | None = None,
        sketch: np.ndarray | None = None,
        label_counts: np.ndarray | None = None,
    ) -> None:
        """Make this rank's part of the record durable: its rows, and its sums of the sketch and of label counts.

        Raises ValueError where it does not fit the layout, OSError where the disk refuses.
        """
        if not 0 <= step < 1 << 63:
            raise ValueError(f"got step {step}; steps are 0 or more, and below 2^63.")
        arrays = record_arrays(
            self._layout, {}, sketch=sketch, snapshot=snapshot, label_counts=label_counts, rows=self._rows
        )
        has_snapshot = SNAPSHOT in arrays
        write_piece(
            self._storage,
            rounded(self._layout, arrays),
            step=step,
            attempt=self._attempt,
            piece=self._piece,
            pieces=self._pieces,
            rows=self._rows if has_snapshot else None,
            has_snapshot=has_snapshot,
        )
