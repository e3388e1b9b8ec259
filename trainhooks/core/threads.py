"""What the main thread leaves to another one, because a signal handler may raise in it at any place.

`Thread.start()` and `Condition.wait()` (as in zarr) hold a lock written in Python: an interrupt in there is replaced by
"release unlocked lock". And one within `Thread.is_alive()` ends the thread that is asked about for good (CPython 3.11).
Handlers run in the main thread alone, so others do these things, and the main thread waits in one call into C.
"""

from __future__ import annotations

import _thread
import queue
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

Result = TypeVar("Result")

_END_SECONDS = 10.0


def elsewhere(call: Callable[[], Result]) -> Result:
    """What `call` returns or raises, in a thread of its own where this one is the main thread.

    An interrupt is raised when the call has ended, or ten seconds later while it goes on.
    """
    if threading.get_ident() != threading.main_thread().ident:
        return call()
    todo, found = [call], list[Result]()
    answer: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def run() -> None:
        try:
            found.append(todo.pop()())  # held no longer than it runs
            answer.put(None)
        except BaseException as error:
            answer.put(error)

    del call
    try:
        _thread.start_new_thread(run, ())
        error = answer.get()
    except BaseException:
        if not _take_back(todo):
            with suppress(queue.Empty):
                answer.get(timeout=_END_SECONDS)
        raise
    if error is not None:
        raise error
    return found[0]


def _take_back(todo: list[Callable[[], Result]]) -> bool:
    """Whether what no thread has begun yet could be taken away, so that none ever will."""
    try:
        todo.pop()
    except IndexError:
        return False
    return True


def start_threads(*threads: threading.Thread) -> None:
    """Start them, in this order; where an interrupt comes, either none is started or all are.

    Raises RuntimeError where the system or an ending Python gives no more threads; those before it run.
    """

    def start() -> None:
        for thread in threads:
            thread.start()

    elsewhere(start)


def python_ends() -> bool:
    """Whether the main thread has ended: no executor takes work any more, and no thread may be waited for long."""
    if sys.is_finalizing():
        return True
    try:
        return not elsewhere(threading.main_thread().is_alive)
    except RuntimeError as error:
        if "shutdown" in str(error):  # from Python 3.12 on no thread is begun then
            return True
        raise
