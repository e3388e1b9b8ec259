"""A queue and the thread that works it off, for sinks whose work the training thread shall not wait for."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

from trainhooks.core.threads import start_threads

Item = TypeVar("Item")

END_SECONDS = 120.0
"""What takes longer for what is queued hangs: nobody waits for it at the end."""
_LOOK_SECONDS = 0.1


class BackgroundWork(Generic[Item]):
    """Calls `handle` with each item in order, in a thread; `put` waits where `most` items wait already.

    Knows nothing of the sink, so that the sink can be collected: a run that ends without close() keeps what it has
    queued, by a finalizer on `end`. After an error nothing more is handled, and `raise_once` raises it. As in
    `BackgroundWriter`, the training thread takes no lock that an interrupt could leave behind.
    """

    def __init__(self, handle: Callable[[Item], None], *, name: str, most: int) -> None:
        self._handle, self._most = handle, most
        self._queue: queue.SimpleQueue[tuple[Item] | None] = queue.SimpleQueue()
        self._ticks: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._given = self._taken = 0  # the caller's thread counts the one, the working thread the other
        self._error: BaseException | None = None
        self._over = False
        self._pid = os.getpid()
        self.cpu_seconds = 0.0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        start_threads(self._thread)

    @property
    def waiting(self) -> int:
        """Items that are queued or being handled."""
        return self._given - self._taken

    def put(self, item: Item) -> None:
        """Queue an item, as soon as there is room."""
        while self.waiting >= self._most and not self._over:
            self._wait()
        self._queue.put((item,))
        self._given += 1

    def settle(self, *, seconds: float) -> bool:
        """Wait so long at most until nothing is queued; whether everything could be handled."""
        until, given = time.monotonic() + seconds, self._given
        while self._taken < given and not self._over:
            if time.monotonic() > until:
                return False
            self._wait()
        return self._error is None

    @property
    def is_elsewhere(self) -> bool:
        """Whether this is a forked child, where nobody works: what is queued is the parent's."""
        return os.getpid() != self._pid

    def end(self) -> None:
        """Handle what is queued, and nothing more; nothing in a forked child."""
        if self.is_elsewhere:
            return
        self._queue.put(None)
        if threading.current_thread() is not self._thread:
            self.settle(seconds=END_SECONDS)

    def raise_once(self) -> None:
        """Raise what went wrong."""
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
                    self._handle(item[0])
                except BaseException as error:  # the training thread must hear of it
                    self._error = error
            del item
            self.cpu_seconds = time.thread_time()
            self._taken += 1
            if self._ticks.empty():
                self._ticks.put(None)
        self._over = True
