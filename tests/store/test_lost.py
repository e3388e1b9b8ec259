"""What is gone, cut, or of another run is never read as if it were there."""

import shutil

import numpy as np
import pytest

from trainhooks.store import StoreError, StoreWriter, open_store
from trainhooks.store.format.compaction_note import replacing
from trainhooks.store.format.root import read_manifest, read_root
from trainhooks.store.maintenance.compact import compact
from trainhooks.store.storage.base import LOCK
from trainhooks.store.storage.local import LocalStorage


def test_every_file_that_is_gone_is_noticed_at_opening(sparse_run, write):
    path = write(sparse_run, records=13)
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and file.name != ".root.json"]
    assert len(files) > 20  # all but the root's spare copy, which stores of before have not
    for file in files:
        content = file.read_bytes()
        file.unlink()
        with pytest.raises(StoreError):
            open_store(path)
        file.write_bytes(content)
    assert open_store(path).complete


def test_a_chunk_that_goes_after_opening_is_not_read_as_missing_values(sparse_run, write):
    path = write(sparse_run, records=13)
    store = open_store(path)
    shutil.rmtree(path / "output_embedding" / "c")
    with pytest.raises(StoreError):
        store.output_embedding(3)


def test_an_overwrite_that_is_interrupted_leaves_no_store_with_other_numbers(run, write, monkeypatch):
    path = write(run, records=5)
    deleted = []

    def delete(self, key):
        if len(deleted) == 3 and key != LOCK:
            raise KeyboardInterrupt
        deleted.append(key)
        plain(self, key)

    plain = LocalStorage.delete
    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "delete", delete)
        with pytest.raises(KeyboardInterrupt):
            StoreWriter(path, run.layout, mode="overwrite")
    with pytest.raises(StoreError, match="overwrite"):
        open_store(path)
    StoreWriter(path, run.layout, mode="overwrite").close()
    assert len(open_store(path).steps) == 0


def test_a_reader_that_was_open_when_the_run_was_cut_says_so(sparse_run, write):
    path = write(sparse_run, records=13)
    store = open_store(path)
    assert store.output_embedding(6).shape == (70, 3)
    writer = StoreWriter(path, sparse_run.layout, mode="resume", restart_step=1)
    for step in range(2, 13):
        writer.append(step, {}, snapshot=-sparse_run.matrix(step) if step % 3 == 0 else None)
    writer.close()
    for read in (
        lambda: store.output_embedding(6),
        lambda: store.snapshots[2],
        lambda: store.token_path(5),
        lambda: store.label_counts(6),
        lambda: store[store.names[0]],
        lambda: store.sketch,
    ):
        with pytest.raises(StoreError, match="was cut and goes on as attempt 1"):
            read()
    assert store.refresh()
    np.testing.assert_array_equal(store.output_embedding(6), -sparse_run.matrix(6))


def test_following_sees_the_end_where_nothing_is_left_to_fold(sparse_run, tmp_path):
    writer = StoreWriter(tmp_path / "s.zarr", sparse_run.layout)
    sparse_run.append(writer, range(12))
    store = open_store(writer.path, follow=True)
    assert len(store.steps) == 12
    assert not store.complete
    writer.close()
    assert store.complete
    StoreWriter(writer.path, sparse_run.layout, mode="resume").release()
    assert not store.complete


def test_resuming_after_an_interrupted_compaction_settles_it(sparse_run, write, monkeypatch):
    path = write(sparse_run, records=13)
    with monkeypatch.context() as patch:
        patch.setattr("trainhooks.store.maintenance.compact._commit", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            compact(path)
    assert replacing(LocalStorage(path))
    StoreWriter(path, sparse_run.layout, mode="resume").close()
    storage = LocalStorage(path)
    assert not replacing(storage)
    for key, (size, _) in read_manifest(storage, read_root(storage)).items():
        assert (path / key).stat().st_size == size
    store = open_store(path)
    np.testing.assert_array_equal(list(store.snapshots), [sparse_run.matrix(step) for step in store.snapshot_steps])


def test_compacting_without_a_shard_says_which(sparse_run, write):
    path = write(sparse_run, records=13)
    (path / "output_embedding" / "c" / "0" / "0" / "0").unlink()
    with pytest.raises(StoreError, match="output_embedding/c/0/0/0 is missing"):
        compact(path)


@pytest.mark.parametrize("close", [True, False])
def test_sketches_in_parts_are_the_sketches(sparse_run, write, close):
    store = open_store(write(sparse_run, records=14, close=close))
    np.testing.assert_array_equal(np.concatenate(list(store.sketch_parts())), store.sketch)
    np.testing.assert_array_equal(store.mapped_sketch(), store.sketch)
    assert open_store(write(sparse_run, records=0, name="none")).mapped_sketch().shape == (0, *store.sketch.shape[1:])
