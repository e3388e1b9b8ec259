"""Two writers that cannot see each other, with clocks five minutes apart: never both believe that they hold a store."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from trainhooks.store import StoreError, open_store
from trainhooks.store.maintenance.compact import compact
from trainhooks.store.maintenance.repair import repair
from trainhooks.store.maintenance.verify import verify

SCRIPT = Path(__file__).parent / "second_writer.py"
LONG, SHORT = 60.0, 0.5  # seconds that another's lock is watched: a living one is heard of at once, a stopped one never
OWNERS = {"first": 0.0, "second": 1000.0}


class Worker:
    """A process that runs the script; killed at the end, stopped or not."""

    def __init__(self, name: str, *, offset: float, namespace: str) -> None:
        command = [sys.executable, str(SCRIPT), name, str(offset), namespace]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def send(self, action: str, *arguments: object) -> None:
        self._process.stdin.write(json.dumps([action, arguments]) + "\n")
        self._process.stdin.flush()

    def answer(self):
        return json.loads(self._process.stdout.readline())

    def ask(self, action: str, *arguments: object):
        self.send(action, *arguments)
        return self.answer()

    def stop(self) -> None:
        os.kill(self._process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)

    def wake(self) -> None:
        os.kill(self._process.pid, signal.SIGCONT)

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(params=[-300.0, 300.0], ids=["clock behind", "clock ahead"])
def writers(request):
    first = Worker("first", offset=0.0, namespace="pid:[1]")
    second = Worker("second", offset=request.param, namespace="pid:[2]")
    yield first, second
    first.end()
    second.end()


@pytest.fixture
def seen_from_afar(monkeypatch):
    """This process, too, is out of the others' sight, and watches no longer than a moment."""
    for name, value in {"_namespace": lambda: "pid:[3]", "_LOOK_SECONDS": 0.02, "HEARTBEAT_SECONDS": 0.05}.items():
        monkeypatch.setattr(f"trainhooks.store.storage.lock.{name}", value)
    return lambda seconds: monkeypatch.setattr("trainhooks.store.storage.lock.WATCH_SECONDS", seconds)


def refused(answer, text: str) -> bool:
    return isinstance(answer, dict) and text in answer["error"]


def opened_beside_a_stopped(first, second, path: Path):
    """What opening says once the first is stopped; again where it had the folder to itself at that moment (a beat)."""
    for _ in range(4):
        first.stop()
        answer = second.ask("open", str(path), "resume", SHORT)
        if not refused(answer, "to itself"):
            break
        first.wake()
    return answer


def check(path: Path, *, taken: int, records: int) -> None:
    """The store is sound and complete: the first's records, and from `taken` on the second's."""
    found = verify(path)
    assert found.sound, found.problems
    store = open_store(path)
    want = np.arange(records) + np.where(np.arange(records) < taken, OWNERS["first"], OWNERS["second"])
    assert store.complete
    assert store.steps.tolist() == list(range(records))
    np.testing.assert_array_equal(store["loss"], want)
    np.testing.assert_array_equal([store.snapshots[step].max() for step in range(records)], want)


def test_a_living_holder_is_never_taken_over_whatever_its_clock_says(writers, tmp_path, seen_from_afar):
    first, second = writers
    path = tmp_path / "s.zarr"
    assert second.ask("open", str(path), "create", LONG) is None  # its clock is not that of this process either
    assert second.ask("append", 6) == 5
    for mode in ("resume", "overwrite"):
        assert refused(first.ask("open", str(path), mode, LONG), "is being written by")
    seen_from_afar(LONG)
    for change in (repair, compact):
        with pytest.raises(StoreError, match="cannot be seen from here"):
            change(path)
    assert second.ask("append", 6) == 11
    second.ask("close")
    check(path, taken=0, records=12)


def test_a_stopped_writer_is_taken_over_and_hears_it_before_it_writes(writers, tmp_path):
    first, second = writers
    path = tmp_path / "s.zarr"
    first.ask("open", str(path), "create", LONG)
    assert first.ask("append", 6) == 5
    assert opened_beside_a_stopped(first, second, path) == 5
    first.send("append", 1)
    first.wake()
    assert refused(first.answer(), "another writer has taken")
    assert refused(first.ask("close"), "another writer has taken")
    assert second.ask("append", 3) == 8
    assert second.ask("close") is None
    check(path, taken=6, records=9)


def test_a_writer_stopped_at_any_moment_changes_nothing_when_it_wakes(writers, tmp_path):
    first, second = writers
    rng, taken_over = random.Random(0), 0
    for number in range(4):
        path = tmp_path / f"{number}.zarr"
        first.ask("open", str(path), "create", LONG)
        first.send("append", 1_000_000)
        time.sleep(rng.uniform(0.02, 0.2))  # which moment it is does not matter
        first.stop()
        last = second.ask("open", str(path), "resume", SHORT)
        if isinstance(last, dict):  # stopped while it had the folder to itself: nobody takes over before it goes on
            assert refused(last, "to itself")
            first.wake()
            first.end()
            return
        taken_over += 1
        begun = 0 if last is None else last + 1
        assert second.ask("append", 7) == begun + 6
        first.wake()
        assert refused(first.answer(), "another writer has taken")
        assert second.ask("append", 6) == begun + 12
        assert second.ask("close") is None
        check(path, taken=begun, records=begun + 13)
    assert taken_over


def test_a_repair_that_stood_still_hears_that_its_store_was_taken(writers, tmp_path, seen_from_afar, monkeypatch):
    _, second = writers
    path = tmp_path / "s.zarr"
    second.ask("open", str(path), "create", LONG)
    second.ask("append", 9)
    second.end()
    seen_from_afar(SHORT)

    def taken(*given):  # between the lock and the first change
        holder = json.loads((path / ".lock").read_text()) | {"token": "another's"}
        (path / ".lock").write_text(json.dumps(holder))
        (path / ".cut.partial").write_bytes(b"")
        return plain(*given)

    from trainhooks.store.maintenance import repair as module

    plain = module._drop_torn
    monkeypatch.setattr(module, "_drop_torn", taken)
    with pytest.raises(StoreError, match="another writer has taken"):
        repair(path)
    assert (path / ".cut.partial").exists()
