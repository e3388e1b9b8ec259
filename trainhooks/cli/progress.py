"""What a command shows while it works: a bar in a terminal, elsewhere a line now and then. On standard error."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from trainhooks.core.printable import plain_console, say, shown

QUIET_SECONDS = 2.0
"""What is done sooner shows nothing."""
LINE_SECONDS = 15.0

Told = Callable[[int, int], None]


@contextmanager
def working(what: str) -> Iterator[Told]:
    """Say that `what` goes on until the block ends; call what it gives with how many of how many are done."""
    with _bar(what) if sys.stderr.isatty() else _lines(what) as told:
        yield told


@contextmanager
def _bar(what: str) -> Iterator[Told]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns: list[Any] = [SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn()]
    columns += [MofNCompleteColumn(), TimeElapsedColumn()]
    with Progress(*columns, console=plain_console(stderr=True), transient=True) as bar:
        task = bar.add_task(shown(what), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def _lines(what: str) -> Iterator[Told]:
    """A thread prints: what is worked on may be silent for long."""
    done, over = [0, 0], threading.Event()
    begun = time.monotonic()

    def update(now: int, total: int) -> None:
        done[:] = now, total

    def watch() -> None:
        wait = QUIET_SECONDS
        while not over.wait(wait):
            part = f"{done[0]} of {done[1]}, " if done[1] else ""
            say(shown(f"{what}: {part}{time.monotonic() - begun:.0f} s"), error=True)
            wait = LINE_SECONDS

    thread = threading.Thread(target=watch, name="trainhooks-progress", daemon=True)
    thread.start()
    try:
        yield update
    finally:
        over.set()
        thread.join()
