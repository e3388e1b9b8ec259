"""Ctrl-C at each place where the training thread deals with the writer's threads: `close()` returns, nothing is torn.

An interrupt is raised wherever the thread enters, goes on within, or leaves a function that waits or wakes: those of
the writer, its room, its lock and its flag, and Python's own for threads.
"""

import sys
import threading
from contextlib import suppress

import numpy as np
import pytest

from trainhooks.store import BackgroundWriter, Layout, StoreError, StoreWriter, Writing, open_store
from trainhooks.store.maintenance.verify import verify
from trainhooks.store.storage.base import LOCK

MOST_SECONDS = 10  # none of these takes a tenth of it, unless it hangs
STORE = ("writing/background", "writing/room", "writing/fold_progress", "storage/lock", "storage/flag")
# threading.py, too: the main thread must not come where an exception leaves a lock as it should not be (Thread.start)
# or marks the main thread itself as ended for good (Thread.is_alive, CPython 3.11)
FILES = (*(f"store/{name}.py" for name in STORE), "core/threads.py", "/threading.py")
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
        if place[1:] == ("__init__", frame.f_lineno, "return") and "background" in place[0]:  # it is whole by then
            return None
        if place not in self.seen:
            self.seen.add(place)
            self.places.append(place)
            if len(self.places) - 1 == self.at:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self.trace


def begin(path, mode="create"):
    return BackgroundWriter(StoreWriter(path, LAYOUT, mode=mode), writing=Writing(queue_bytes=300))


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


def test_a_writer_that_is_interrupted_while_it_begins_leaves_nothing_behind(tmp_path):
    fallen, at = 0, 0
    while True:
        with Interrupt(at) as interrupt:
            try:
                writer = begin(tmp_path / "run.zarr", mode="overwrite")
            except KeyboardInterrupt:  # and nothing in its place
                writer = None
        for thread in threading.enumerate():
            if thread.name.startswith("trainhooks") and writer is None:
                thread.join(MOST_SECONDS)
                assert not thread.is_alive(), f"{thread.name} goes on after an interrupt at {interrupt.places[-1]}"
        if writer is not None:
            break
        fallen, at = fallen + 1, at + 1
        assert not (tmp_path / "run.zarr" / LOCK).exists(), interrupt.places[-1]
    assert fallen == len(interrupt.places) > 20
    writer.close()
    assert open_store(tmp_path / "run.zarr").complete
    assert threading.main_thread().is_alive()
