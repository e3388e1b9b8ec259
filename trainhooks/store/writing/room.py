"""Room for records that wait to be written: so many bytes, given by the training thread and taken by another."""

from __future__ import annotations

import queue
from collections.abc import Callable
from contextlib import suppress

import numpy as np

_LOOK_SECONDS = 0.1


class Room:
    """Counts the bytes that wait, and keeps the memory of one matrix for the next.

    The training thread calls `wait_for`, `copy` and `give`, the writing thread `take`, `keep` and `end`. As a signal
    handler may raise anywhere in the former, neither takes a lock: each side has a count of its own.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._given = self._taken = 0
        self._awaited = False
        self._ticks: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._spare: queue.SimpleQueue[np.ndarray] = queue.SimpleQueue()

    def wait_for(self, size: int, *, block: bool, over: Callable[[], bool]) -> bool:
        """Whether so many bytes have room now; `block` waits for it, until nothing is written any more (`over`).

        More than there is room for at all has it where nothing waits.
        """
        while not (over() or self._fits(size)):
            if not block:
                return False
            self._awaited = True
            with suppress(queue.Empty):
                self._ticks.get(timeout=_LOOK_SECONDS)
        return not over()

    def _fits(self, size: int) -> bool:
        waiting = self._given - self._taken
        return waiting + size <= self._size or waiting <= 0

    def give(self, size: int) -> None:
        """Count what was sent. After it is: what an interrupt leaves uncounted makes room, instead of taking it."""
        self._given += size

    def take(self, size: int) -> None:
        """Count what was written, and say so where somebody waits for room."""
        self._taken += size
        if self._awaited:
            self._awaited = False
            self._ticks.put(None)

    def copy(self, array: np.ndarray) -> np.ndarray:
        """A copy, in the memory that was kept where it fits."""
        # memory that is used again is not paged in again: a third of the time of a fresh copy
        with suppress(queue.Empty):
            spare = self._spare.get_nowait()
            if (spare.shape, spare.dtype) == (array.shape, array.dtype):
                np.copyto(spare, array)
                return spare
            self._spare.put(spare)
        return np.array(array, order="C")

    def keep(self, array: np.ndarray) -> None:
        """Keep the memory of a copy that is written, unless there is one already."""
        if self._spare.empty():
            self._spare.put(array)

    def end(self) -> None:
        """Let the memory go that was kept."""
        with suppress(queue.Empty):
            while True:
                self._spare.get_nowait()
