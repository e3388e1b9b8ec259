"""One writer a store: who is refused, who is taken over, and who notices."""

import json
import os
import time
from types import SimpleNamespace

import pytest

from trainhooks.store import StoreError, StoreWriter
from trainhooks.store.lock import WATCH_SECONDS
from trainhooks.store.place import LOCK


def test_a_second_writer_is_refused_and_a_dead_holder_taken_over(run, tmp_path, monkeypatch):
    writer = StoreWriter(tmp_path / "s.zarr", run.layout)
    run.append(writer, [0])
    for mode in ("resume", "overwrite"):
        with pytest.raises(StoreError, match=r"is being written by process \d+ on .*, this process"):
            StoreWriter(writer.path, run.layout, mode=mode)
    lock = json.loads((writer.path / ".lock").read_text())
    # the same process id, used again by a process that began at another time
    (writer.path / ".lock").write_text(json.dumps(lock | {"started": "another"}))
    again = StoreWriter(writer.path, run.layout, mode="resume")
    assert again.last_step == 0
    for _ in range(2):
        writer._lock.beat()
    with pytest.raises(StoreError, match="another writer has taken"):
        run.append(writer, [1])
    again.abandon()
    monkeypatch.setattr("trainhooks.store.lock.WATCH_SECONDS", 0.05)
    away = lock | {"host": "elsewhere"}
    (writer.path / ".lock").write_text(json.dumps(away))
    with pytest.raises(StoreError, match=r"on elsewhere"):
        StoreWriter(writer.path, run.layout, mode="resume")
    (writer.path / ".lock").write_text(json.dumps(away | {"beat": lock["beat"] - 1000}))
    StoreWriter(writer.path, run.layout, mode="resume").close()
    assert not (writer.path / ".lock").exists()


def test_a_holder_elsewhere_that_beats_is_alive_whatever_its_clock_says(run, tmp_path, monkeypatch):
    StoreWriter(tmp_path / "s.zarr", run.layout).close()
    lock = tmp_path / "s.zarr" / LOCK
    holder = {"host": "elsewhere", "pid": 1, "started": "", "token": "theirs", "beat": time.time() - 1000}
    lock.write_text(json.dumps(holder))
    watched = []

    def sleep(seconds):  # while it is watched, the holder beats
        watched.append(seconds)
        lock.write_text(json.dumps(holder | {"beat": holder["beat"] + 15}))

    monkeypatch.setattr("trainhooks.store.lock.time", SimpleNamespace(time=time.time, sleep=sleep))
    with pytest.raises(StoreError, match="on elsewhere"):
        StoreWriter(tmp_path / "s.zarr", run.layout, mode="resume")
    assert watched == [WATCH_SECONDS]


def test_a_damaged_lock_admits_nobody(run, tmp_path):
    writer = StoreWriter(tmp_path / "s.zarr", run.layout)
    lock = writer.path / LOCK
    lock.write_bytes(b"x" + lock.read_bytes()[1:])
    with pytest.raises(StoreError, match="delete that file"):
        StoreWriter(writer.path, run.layout, mode="resume")


def test_a_commit_looks_at_the_lock_file_itself(run, tmp_path):
    writer = StoreWriter(tmp_path / "s.zarr", run.layout)
    run.append(writer, range(3))
    lock = writer.path / LOCK
    lock.write_text(json.dumps(json.loads(lock.read_text()) | {"token": "theirs"}))
    root = (writer.path / "zarr.json").read_bytes()
    with pytest.raises(StoreError, match="another writer has taken"):
        writer.close()
    assert (writer.path / "zarr.json").read_bytes() == root


def test_a_child_forked_while_the_folder_is_locked_holds_nothing(run, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    writer = StoreWriter(tmp_path / "s.zarr", run.layout)
    descriptors = []
    plain, taken = os.open, fcntl.flock

    def opened(*args):  # what a child would have: another descriptor of the same open file
        descriptors.append(os.dup(descriptor := plain(*args)))
        return descriptor

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", opened)
        with writer.place.alone():
            pass
    try:
        probe = plain(writer.path, os.O_RDONLY)
        taken(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError where the copy still holds it
        os.close(probe)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    writer.close()


def test_a_holder_in_another_namespace_or_on_another_machine_of_the_name_is_not_dead_for_its_id(run, tmp_path):
    writer = StoreWriter(tmp_path / "s.zarr", run.layout)
    lock = json.loads((writer.path / LOCK).read_text())
    writer.abandon()
    assert lock["namespace"] == os.readlink("/proc/self/ns/pid")
    boot, _, start = lock["started"].rpartition("/")
    for other in ({"namespace": "pid:[1]", "pid": 1 << 22}, {"started": f"another-{boot}/{start}"}):
        (writer.path / LOCK).write_text(json.dumps(lock | other))
        with pytest.raises(StoreError, match="cannot be seen from here"):
            StoreWriter(writer.path, run.layout, mode="resume")
    # the same words of a process that can be looked for, by a version that did not write its namespace
    (writer.path / LOCK).write_text(json.dumps({k: v for k, v in lock.items() if k != "namespace"} | {"pid": 1 << 22}))
    StoreWriter(writer.path, run.layout, mode="resume").close()


def test_a_lock_of_a_later_version_says_who_holds_it(run, tmp_path):
    writer = StoreWriter(tmp_path / "s.zarr", run.layout)
    lock = writer.path / LOCK
    lock.write_text(json.dumps(json.loads(lock.read_text()) | {"more": 1}))
    with pytest.raises(StoreError, match="is being written by"):
        StoreWriter(writer.path, run.layout, mode="resume")
