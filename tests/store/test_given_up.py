"""A store that is given up while it is opened: nothing of it changes afterwards, and the next writer has it."""

import signal
import threading

import pytest

from trainhooks.core import threads
from trainhooks.store import StoreError, StoreWriter, open_store
from trainhooks.store.maintenance.verify import verify
from trainhooks.store.storage.local import LocalStorage
from trainhooks.store.storage.lock import LOCK, Lock


def test_an_interrupt_while_the_lock_is_waited_for_changes_nothing_later(write, run, monkeypatch):
    path = write(run, records=3)
    gate, ended = threading.Event(), threading.Event()
    take, opening = Lock._take, StoreWriter._open

    def waits(lock, **given):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        gate.wait()
        return take(lock, **given)

    def opens(*given):
        try:
            opening(*given)
        finally:
            ended.set()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with monkeypatch.context() as patched:
        patched.setattr(threads, "_END_SECONDS", 0.0)
        patched.setattr(Lock, "_take", waits)
        patched.setattr(StoreWriter, "_open", opens)
        try:
            with pytest.raises(KeyboardInterrupt):
                StoreWriter(path, run.layout, mode="overwrite")
        finally:
            signal.signal(signal.SIGINT, before)
            gate.set()
        assert ended.wait(30)
    assert open_store(path).steps.tolist() == [0, 1, 2]
    StoreWriter(path, run.layout, mode="resume").close()


@pytest.mark.parametrize("written", range(6))
def test_a_store_whose_replacement_stopped_is_whole_or_is_none(write, run, monkeypatch, written):
    """However many files the new one had written: the old one is sound, or a mark says that nothing is there yet."""
    path = write(run, records=3)
    plain, keys = LocalStorage.put_streamed, []

    def stops(storage, write):
        def named(file):
            keys.append(write(file))
            return keys[-1]

        if sum(key != LOCK for key in keys) >= written:
            raise OSError("stopped")
        return plain(storage, named)

    with monkeypatch.context() as patched:
        patched.setattr(LocalStorage, "put_streamed", stops)
        with pytest.raises(StoreError, match="stopped"):
            StoreWriter(path, run.layout, mode="overwrite")
    found = verify(path)
    if found.last_step is not None:
        assert open_store(path).steps.tolist() == [0, 1, 2]
        assert found.sound, found.problems
    else:
        with pytest.raises(StoreError, match='mode="overwrite"'):
            open_store(path)
    StoreWriter(path, run.layout, mode="overwrite").close()
