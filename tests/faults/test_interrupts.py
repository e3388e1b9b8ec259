"""Ctrl-C at each place where the training thread deals with the writer's threads: `close()` returns, nothing is torn.

An interrupt is raised wherever the thread enters, goes on within, or leaves a function that waits or wakes: those of
the writer, its room, its lock and its flag.
"""

import sys
import threading
from contextlib import suppress

import numpy as np
import pytest

from trainhooks.store import BackgroundWriter, Layout, StoreError, StoreWriter, Writing, open_store
from trainhooks.store.maintenance.verify import verify

MOST_SECONDS = 10  # none of these takes a tenth of it, unless it hangs
STORE = ("writing/background", "writing/room", "writing/fold_progress", "storage/lock", "storage/flag")
# not threading.py: an exception within Thread.is_alive() marks the main thread as ended for good (CPython 3.11)
FILES = tuple(f"store/{name}.py" for name in STORE)
LAYOUT = Layout(vocab=8, dim=2, groups=(), sketch_size=0, block=2)
MATRIX = np.ones((8, 2), np.float32)


class Interrupt:
    """Raises KeyboardInterrupt at the `at`-th place of this thread, once; `places` are those that were come by."""

    def __init__(self, at=None):
        self.at, self.places, self.seen = at, [], set()

    def __enter__(self):
        sys.settrace(self.trace)
        return self

    def __exit__(self, *_):
        sys.settrace(None)

    def trace(self, frame, event, _):
        code = frame.f_code
        if not code.co_filename.endswith(FILES):
            return None
        place = code.co_filename, code.co_name, frame.f_lineno, event
        if place not in self.seen:
            self.seen.add(place)
            self.places.append(place)
            if len(self.places) - 1 == self.at:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self.trace


def begin(path):
    return BackgroundWriter(StoreWriter(path, LAYOUT), writing=Writing(queue_bytes=300))


def append(writer):
    for step in range(4, 9):
        writer.append(step, {}, snapshot=MATRIX)


PARTS = {
    "append": append,
    "flush": lambda writer: writer.flush(),
    "settle": lambda writer: writer.settle(seconds=5.0),
    "finish": lambda writer: writer.finish({}),
    "close": lambda writer: writer.close(),
    "detach": lambda writer: writer.detach(),
}


def interrupted(path, part, at):
    """Record, be interrupted in a part, and close; the places that were met, and whether the interrupt was."""
    writer = begin(path)
    for step in range(4):
        writer.append(step, {}, snapshot=MATRIX)
    fell = False
    with Interrupt(at) as interrupt:
        try:
            PARTS[part](writer)
        except KeyboardInterrupt:
            fell = True
    over = threading.Event()

    def close():
        with suppress(StoreError):
            writer.close()
        over.set()

    threading.Thread(target=close, daemon=True).start()
    assert over.wait(MOST_SECONDS), f"close() hangs after an interrupt at {interrupt.places[-1]}"
    return interrupt.places, fell


@pytest.mark.parametrize("part", PARTS)
def test_close_returns_whatever_an_interrupt_cut_off(tmp_path, part):
    places, _ = interrupted(tmp_path / "whole", part, at=None)
    assert len(places) > 5
    fallen = 0
    for at in range(len(places)):
        path = tmp_path / str(at)
        met, fell = interrupted(path, part, at)
        fallen += fell
        assert verify(path).sound, met[-1]
        steps = open_store(path).steps.tolist()
        assert steps[:4] == [0, 1, 2, 3], met[-1]
        assert steps == list(range(len(steps))), met[-1]
        StoreWriter(path, LAYOUT, mode="resume").release()  # it was let go
    assert fallen > len(places) / 2
