"""A disk that is slower than training: what waits is bounded, "block" loses nothing, "drop" counts what it left out."""

import queue
import threading
import weakref
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from trainhooks.store import BackgroundWriter, StoreWriter, Writing, open_store
from trainhooks.store.storage.local import LocalStorage
from trainhooks.store.writing import background as module

PATIENCE_SECONDS = 120  # only what hangs takes so long
RECORDS_WAITING = 2


class Disk(LocalStorage):
    """Keeps a file whose key begins with `slow` only once it may: `may` is a semaphore; `kept` counts them."""

    def __init__(self, path, *, slow):
        super().__init__(path)
        self.slow, self.may, self.kept = slow, threading.Semaphore(0), 0

    def put_streamed(self, write):
        def wait(file):
            key = write(file)
            if key.startswith(self.slow):
                assert self.may.acquire(timeout=PATIENCE_SECONDS)
                self.kept += 1
            return key

        return super().put_streamed(wait)


class Watched(threading.Condition):
    """Says when the writing thread begins to wait for the fold: nobody has to guess from the time that passed."""

    def __init__(self):
        super().__init__()
        self.waits = threading.Semaphore(0)

    def wait(self, timeout=None):
        if threading.current_thread().name == "trainhooks-writer":
            self.waits.release()
        return super().wait(timeout)


class Ticks(queue.SimpleQueue):
    """Says when the training thread begins to wait for room, once a record."""

    def watch(self, training):
        self.training, self.seen, self.waits = training, None, threading.Semaphore(0)
        return self

    def get(self, timeout):
        if self.seen != self.training.returned:
            self.seen = self.training.returned
            self.waits.release()
        return super().get(timeout=timeout)


class Training(threading.Thread):
    """Appends records whose matrices belong to the writer; `alive` counts the matrices that somebody still holds."""

    def __init__(self, run, writer, steps):
        super().__init__(name="training", daemon=True)
        self.run_of, self.writer, self.steps = run, writer, steps
        self.given, self.returned = [], 0
        writer._room._ticks = Ticks().watch(self)

    def run(self):
        for step in self.steps:
            matrix = self.run_of.matrix(step)
            self.given.append(weakref.ref(matrix))
            self.writer.append(step, {}, snapshot=matrix, keep=True)
            del matrix
            self.returned += 1

    @property
    def alive(self):
        return sum(matrix() is not None for matrix in self.given)


@pytest.fixture
def begin(run, tmp_path, monkeypatch):
    """A writer whose queue has room for two records, and the disk it writes to."""
    monkeypatch.setattr(module, "threading", SimpleNamespace(**{**vars(threading), "Condition": Watched}))
    room = RECORDS_WAITING * run.matrix(0).nbytes

    disks = []

    def begin(*, slow, **writing):
        disk = Disk(tmp_path / "s.zarr", slow=slow)
        disks.append(disk)
        core = StoreWriter(disk, replace(run.layout, block=4))
        return BackgroundWriter(core, writing=Writing(queue_bytes=room, **writing)), disk

    yield begin
    for disk in disks:  # whatever failed, nothing hangs on it
        disk.may.release(1000)


def check(run, path, steps):
    store = open_store(path)
    assert store.steps.tolist() == list(steps)
    for step in steps:
        np.testing.assert_array_equal(store.output_embedding(step), run.matrix(step))
    return store


@pytest.mark.parametrize("threads", [1, 2])
def test_blocking_waits_for_the_disk_and_loses_nothing(run, begin, threads):
    writer, disk = begin(slow=".journal", threads=threads)
    training = Training(run, writer, range(11))
    training.start()
    for kept in range(11 - RECORDS_WAITING):
        assert writer._room._ticks.waits.acquire(timeout=PATIENCE_SECONDS), "training went on"
        assert (disk.kept, training.returned) == (kept, kept + RECORDS_WAITING)
        assert training.alive <= RECORDS_WAITING + 2  # the one that is offered, and the last that was written
        disk.may.release()
    disk.may.release(RECORDS_WAITING)
    training.join(PATIENCE_SECONDS)
    assert training.returned == 11
    writer.close()
    assert writer.dropped == 0
    assert check(run, disk.path, range(11)).dropped == 0


def test_dropping_goes_on_says_so_once_and_counts(run, begin):
    writer, disk = begin(slow=".journal", backpressure="drop")
    training = Training(run, writer, range(9))
    with pytest.warns(RuntimeWarning, match="queue is full") as said:
        training.run()
    assert len(said) == 1
    assert (disk.kept, training.returned) == (0, 9)
    assert training.alive == RECORDS_WAITING
    disk.may.release(RECORDS_WAITING)
    writer.flush()
    disk.may.release()
    Training(run, writer, [9]).run()
    writer.close()
    assert writer.dropped == 7
    assert check(run, disk.path, [0, 1, 9]).dropped == 7


def test_a_fold_that_is_slow_holds_the_journal_at_two_blocks(run, begin):
    writer, disk = begin(slow="output_embedding/c/")
    training = Training(run, writer, range(14))
    training.start()
    while writer._writer.backlog < 2 * 4:  # then the writing thread waits for the fold
        assert writer._change.waits.acquire(timeout=PATIENCE_SECONDS)
    assert writer._room._ticks.waits.acquire(timeout=PATIENCE_SECONDS)
    assert disk.kept == 0
    assert writer.durable_step == 7
    assert training.alive <= RECORDS_WAITING + 2  # the one that is offered, and the last that was written
    disk.may.release(1000)
    training.join(PATIENCE_SECONDS)
    writer.close()
    assert disk.kept > 0
    check(run, disk.path, range(14))
