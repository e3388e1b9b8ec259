"""A flag between threads that an interrupt cannot leave locked."""

from __future__ import annotations

import queue


class Flag:
    """Raised once, by any thread; one other thread waits for it.

    As `threading.Event`, which takes a lock in Python code: where a signal handler raises between its taking and its
    release, everybody who comes later waits for ever. Here nothing but one call into C changes anything.
    """

    def __init__(self) -> None:
        self._raised: queue.SimpleQueue[None] = queue.SimpleQueue()

    def set(self) -> None:
        """Raise it; may be called again."""
        self._raised.put(None)

    def wait(self, seconds: float) -> bool:
        """Wait so long at most; whether it was raised."""
        try:
            self._raised.get(timeout=seconds)
        except queue.Empty:
            return False
        self._raised.put(None)
        return True
