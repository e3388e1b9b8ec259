"""A bound on calls that wait for a server: a timeout for each read lets one that sends a byte now and then go on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

from trainhooks.core.threads import start_threads

Result = TypeVar("Result")


class OverdueError(Exception):
    """A call was not done in time."""


def within(seconds: float, call: Callable[[], Result]) -> Result:
    """What `call` returns or raises; OverdueError where it takes longer, whatever it waits for.

    It runs in a thread of its own, which is then left to itself: it must change nothing that is used afterwards.
    """
    done: Future[Result] = Future()

    def run() -> None:
        try:
            done.set_result(call())
        except BaseException as error:
            done.set_exception(error)

    start_threads(threading.Thread(target=run, daemon=True, name="trainhooks-hub"))
    if not wait([done], timeout=max(0.0, seconds)).done:
        raise OverdueError
    return done.result()
