"""A copy of a store that a run writes meanwhile: sound, with every record that was durable when it began."""

import numpy as np
import pytest

from trainhooks.store import StoreError, StoreWriter, open_store
from trainhooks.store.maintenance.copying import snapshot
from trainhooks.store.maintenance.verify import verify
from trainhooks.store.storage.local import LocalStorage


def check(run, path, least):
    assert verify(path).problems == ()
    store = open_store(path)
    assert store.steps.tolist() == list(range(len(store.steps)))
    assert len(store.steps) >= least
    for position, step in enumerate(store.snapshot_steps):
        np.testing.assert_array_equal(store.snapshots[position], run.matrix(int(step)))
    np.testing.assert_array_equal(store.sketch, [run.sketch(int(step)) for step in store.steps])


def test_a_copy_is_sound_whatever_is_written_meanwhile(tmp_path, sparse_run, monkeypatch):
    writer = StoreWriter(tmp_path / "run.zarr", sparse_run.layout)
    steps = iter(range(10_000))
    sparse_run.append(writer, (next(steps) for _ in range(11)))
    view, calls = LocalStorage.mmap, []

    def view_and_write(self, key):
        content = view(self, key)
        calls.append(key)
        if self.path == writer.path and len(calls) in (3, 20, 60):  # on some of the copy's passes
            sparse_run.append(writer, (next(steps) for _ in range(5)))
        return content

    monkeypatch.setattr(LocalStorage, "mmap", view_and_write)
    snapshot(writer.path, out=tmp_path / "copy")
    monkeypatch.undo()
    check(sparse_run, tmp_path / "copy", 11)
    assert not (tmp_path / "copy" / ".lock").exists()
    resumed = StoreWriter(tmp_path / "copy", sparse_run.layout, mode="resume")
    sparse_run.append(resumed, range(resumed.last_step + 1, resumed.last_step + 5))
    resumed.close()
    check(sparse_run, tmp_path / "copy", 15)


def test_a_damaged_store_is_not_copied_and_leaves_nothing(write, sparse_run, tmp_path):
    path = write(sparse_run, records=11)
    chunk = path / "output_embedding" / "c" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    with pytest.raises(StoreError, match="does not fit its checksum"):
        snapshot(path, out=tmp_path / "copy")
    assert [file.name for file in tmp_path.iterdir()] == ["run.zarr"]
    with pytest.raises(StoreError, match="there already"):
        snapshot(path, out=path)
