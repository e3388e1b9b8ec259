"""One writer a store: who is refused, who is taken over, and who notices."""

import json
import os
from types import SimpleNamespace

import pytest

from trainhooks.store import StoreError, StoreWriter, open_store
from trainhooks.store.maintenance.repair import repair
from trainhooks.store.maintenance.verify import verify
from trainhooks.store.storage.base import LOCK
from trainhooks.store.storage.local import LocalStorage
from trainhooks.store.storage.lock import HEARTBEAT_SECONDS, WATCH_SECONDS, holder_of


def test_a_second_writer_is_refused_and_a_dead_holder_taken_over(run, tmp_path):
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
    again.release()


@pytest.fixture
def watch(monkeypatch):
    """Time that passes only while a lock is watched, by a clock that says the given time; `beat_after`: its holder
    gives a sign of life in that second. Returns the seconds watched so far."""

    def start(lock, *, clock=0.0, beat_after=None):
        watched = [0.0]

        def sleep(seconds):
            watched[0] += seconds
            if beat_after is not None and watched[0] >= beat_after:
                holder = json.loads(lock.read_text())
                lock.write_text(json.dumps(holder | {"beat": holder["beat"] + 10}))

        own = SimpleNamespace(time=lambda: clock, monotonic=lambda: 5e5 + watched[0], sleep=sleep)
        monkeypatch.setattr("trainhooks.store.storage.lock.time", own)
        return watched

    return start


@pytest.mark.parametrize("apart", [-300.0, 0.0, 300.0, 1e6])
def test_a_holder_out_of_sight_is_judged_by_its_signs_of_life_alone(run, tmp_path, watch, caplog, apart):
    StoreWriter(tmp_path / "s.zarr", run.layout).close()
    lock = tmp_path / "s.zarr" / LOCK
    holder = {"host": "else\x1bwhere", "pid": 1, "started": "", "token": "theirs", "beat": 1e9}
    lock.write_text(json.dumps(holder))
    watched = watch(lock, clock=1e9 + apart, beat_after=HEARTBEAT_SECONDS)
    with pytest.raises(StoreError, match="is being written by process 1"):
        StoreWriter(tmp_path / "s.zarr", run.layout, mode="resume")
    assert watched == [HEARTBEAT_SECONDS]
    assert "\x1b" not in caplog.text
    assert "watching for 60 s" in caplog.text
    watched = watch(lock, clock=1e9 + apart)
    StoreWriter(tmp_path / "s.zarr", run.layout, mode="resume").close()
    assert watched == [WATCH_SECONDS]
    assert not lock.exists()


def test_a_sign_of_life_is_another_number_though_the_clock_stands(run, tmp_path, watch):
    writer = StoreWriter(tmp_path / "s.zarr", run.layout)
    lock = writer.path / LOCK
    watch(lock, clock=json.loads(lock.read_text())["beat"] - 100.0)
    found = [lock.read_bytes()]
    for _ in range(3):
        writer._lock.beat()
        found.append(lock.read_bytes())
    assert len(set(found)) == len(found)
    writer.close()
    assert not lock.exists()


@pytest.mark.parametrize(("apart", "named"), [(-500.0, True), (500.0, True), (700.0, False)])
def test_readers_do_not_wait_and_name_a_holder_out_of_sight_for_ten_minutes(run, tmp_path, watch, apart, named):
    StoreWriter(tmp_path / "s.zarr", run.layout).close()
    lock = tmp_path / "s.zarr" / LOCK
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": "", "token": "theirs", "beat": 1e9}))
    watched = watch(lock, clock=1e9 + apart)
    assert (holder_of(LocalStorage(tmp_path / "s.zarr")) is not None) == named
    assert watched == [0.0]


@pytest.mark.parametrize("change", [{"pid": "1"}, {"host": 3}, {"beat": "soon"}, {"token": None}])
def test_a_lock_that_names_nobody_is_damaged(run, tmp_path, change):
    StoreWriter(tmp_path / "s.zarr", run.layout).close()
    holder = {"host": "elsewhere", "pid": 1, "started": "", "token": "theirs", "beat": 1e9}
    (tmp_path / "s.zarr" / LOCK).write_text(json.dumps(holder | change))
    with pytest.raises(StoreError, match="is damaged"):
        StoreWriter(tmp_path / "s.zarr", run.layout, mode="resume")


def test_a_damaged_lock_admits_nobody(run, tmp_path):
    writer = StoreWriter(tmp_path / "s.zarr", run.layout)
    lock = writer.path / LOCK
    lock.write_bytes(b"x" + lock.read_bytes()[1:])
    with pytest.raises(StoreError, match="delete that file"):
        StoreWriter(writer.path, run.layout, mode="resume")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"x}", b"[1]}", b"{}", b'{"beat": 1e999}', b"9" * 5000, b"\xff}", b"[" * 9000 + b"}"]
)
def test_repair_gets_past_a_lock_that_names_nobody(run, tmp_path, monkeypatch, content):
    writer = StoreWriter(tmp_path / "s.zarr", run.layout)
    run.append(writer, range(3))
    lock = writer.path / LOCK
    lock.write_bytes(content)
    monkeypatch.setattr("trainhooks.store.storage.lock.WATCH_SECONDS", 0.0)
    monkeypatch.setattr("trainhooks.store.storage.lock.HEARTBEAT_SECONDS", 1e6)
    assert any("names nobody" in str(note) for note in verify(writer.path).notes)
    repair(writer.path)
    assert verify(writer.path).problems == ()
    assert open_store(writer.path).steps.tolist() == [0, 1, 2]
    with pytest.raises(StoreError, match="another writer has taken"):  # the first one hears it before it writes
        writer.close()


def test_a_garbled_lock_that_changes_is_somebodys(run, tmp_path, monkeypatch):
    writer = StoreWriter(tmp_path / "s.zarr", run.layout)
    lock = writer.path / LOCK
    lock.write_bytes(b"x}")
    monkeypatch.setattr("trainhooks.store.storage.lock.time.sleep", lambda seconds: lock.write_bytes(b"y}"))
    with pytest.raises(StoreError, match="takes the store over after a minute"):
        repair(writer.path)


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
        with writer.storage.alone():
            pass
    try:
        probe = plain(writer.path, os.O_RDONLY)
        taken(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError where the copy still holds it
        os.close(probe)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    writer.close()


def test_a_holder_in_another_namespace_or_on_another_machine_of_the_name_is_not_dead_for_its_id(run, tmp_path, watch):
    writer = StoreWriter(tmp_path / "s.zarr", run.layout)
    lock = json.loads((writer.path / LOCK).read_text())
    writer.release()
    assert lock["namespace"] == os.readlink("/proc/self/ns/pid")
    boot, _, start = lock["started"].rpartition("/")
    for other in ({"namespace": "pid:[1]", "pid": 1 << 22}, {"started": f"another-{boot}/{start}"}):
        (writer.path / LOCK).write_text(json.dumps(lock | other))
        watch(writer.path / LOCK, beat_after=1.0)
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
