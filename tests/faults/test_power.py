"""A power cut with the default durability: what was not synced is lost in the ways that file systems lose it."""

import itertools
import shutil

import numpy as np
import pytest

from trainhooks.core.variable import Variable
from trainhooks.store import Layout, StoreError, StoreWriter, open_store
from trainhooks.store.maintenance.repair import repair
from trainhooks.store.maintenance.verify import verify
from trainhooks.store.storage.local import LocalStorage

LAYOUT = Layout(vocab=5, dim=2, groups=(), sketch_size=0, variables=(Variable("loss"),), block=4)


def append(writer, steps):
    for step in steps:
        writer.append(step, {"loss": step / 2}, snapshot=np.full((5, 2), step, np.float32))


def lose(file, way):
    """One file as a power cut leaves it that was never synced."""
    if way == "gone":
        file.unlink()
    elif way == "empty":
        file.write_bytes(b"")
    elif way == "zeros":
        file.write_bytes(bytes(file.stat().st_size))
    elif way == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def check(path, committed):
    """The store opens after repair, holds what was committed at least, and every number is the written one."""
    repair(path)
    assert verify(path).problems == ()
    store = open_store(path)
    steps = store.steps.tolist()
    assert steps[:committed] == list(range(committed))
    np.testing.assert_array_equal(store["loss"], [step / 2 for step in steps])
    for position, step in enumerate(store.snapshot_steps):
        assert (store.snapshots[position] == step).all()


@pytest.mark.parametrize("ways", list(itertools.product(["whole", "gone", "empty", "zeros", "cut"], repeat=2)))
def test_the_tail_may_be_lost_and_never_the_store(tmp_path, ways):
    writer = StoreWriter(tmp_path / "run.zarr", LAYOUT)
    append(writer, range(10))
    path = tmp_path / "after.zarr"
    shutil.copytree(writer.path, path)
    writer.release()
    pieces = sorted((path / ".journal").iterdir())
    assert len(pieces) == 2
    for file, way in zip([pieces[-1], path / ".lock"], ways, strict=True):
        lose(file, way)
    if ways[1] == "whole":
        (path / ".lock").unlink()  # its writer lives: this process
    check(path, 8)


@pytest.mark.parametrize("way", ["gone", "empty", "zeros", "cut"])
@pytest.mark.parametrize("closed", [False, True])
def test_a_root_that_is_torn_has_a_spare(tmp_path, way, closed):
    writer = StoreWriter(tmp_path / "run.zarr", LAYOUT)
    append(writer, range(10))
    writer.close() if closed else writer.release()
    lose(writer.path / "zarr.json", way)
    (problem,) = verify(writer.path).problems
    assert problem.key == "zarr.json"
    assert "--repair" in str(problem)
    with pytest.raises(StoreError, match=r"--repair` puts \.root\.json in its place"):
        open_store(writer.path)
    check(writer.path, 10)
    if closed:
        assert verify(writer.path).sound


def test_a_root_of_another_format_is_not_replaced(tmp_path):
    writer = StoreWriter(tmp_path / "run.zarr", LAYOUT)
    writer.close()
    root = writer.path / "zarr.json"
    newer = root.read_bytes().replace(b'"format": 1', b'"format": 2')
    root.write_bytes(newer)
    with pytest.raises(StoreError, match="has format 2"):
        repair(writer.path)
    assert root.read_bytes() == newer


def test_without_a_spare_a_torn_root_is_said_to_be_lost(tmp_path):
    writer = StoreWriter(tmp_path / "run.zarr", LAYOUT)
    writer.close()
    (writer.path / ".root.json").unlink()
    (writer.path / "zarr.json").write_bytes(b"")
    with pytest.raises(StoreError, match="Restore it from a copy"):
        repair(writer.path)


def test_every_commit_stands_on_what_is_synced(tmp_path, monkeypatch):
    """The disk as it is when a commit waits for it: what the root before it needs is there, and whole."""
    states = []
    settle = LocalStorage.settle

    def copy_before(self):
        state = tmp_path / f"state-{len(states)}"
        shutil.copytree(self.path, state, ignore=shutil.ignore_patterns(".journal", ".lock"))
        states.append(state)
        settle(self)

    writer = StoreWriter(tmp_path / "run.zarr", LAYOUT)
    monkeypatch.setattr(LocalStorage, "settle", copy_before)
    append(writer, range(13))
    writer.close()
    monkeypatch.undo()
    assert len(states) == 10  # two a commit: 3 folds, the last records and the end
    for state in states:
        check(state, 0)


def test_files_are_on_the_disk_before_they_have_names(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr("trainhooks.store.storage.local.sync", lambda descriptor: done.append("sync"))
    replace = type(tmp_path).replace
    monkeypatch.setattr(type(tmp_path), "replace", lambda self, to: done.append(to.name) or replace(self, to))
    StoreWriter(tmp_path / "run.zarr", LAYOUT).close()
    named = [number for number, what in enumerate(done) if what not in ("sync", ".lock")]
    assert named
    assert all(done[number - 1] == "sync" for number in named)
    root = max(number for number in named if done[number] == "zarr.json")
    assert done[root + 1] == "sync"
