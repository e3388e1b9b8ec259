"""Damage of every kind: `verify` names the file, and `--repair` recovers what can be."""

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest

from trainhooks.store import StoreError, StoreWriter, open_store
from trainhooks.store.maintenance.compact import compact
from trainhooks.store.maintenance.export import export_step
from trainhooks.store.maintenance.repair import repair
from trainhooks.store.maintenance.verify import gaps, verify
from trainhooks.store.storage.local import LocalStorage

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from flip import flip_byte, raises_everywhere


def files(path):
    return sorted(file for file in path.rglob("*") if file.is_file() and file.name != ".lock")


def test_a_whole_store_is_sound_closed_or_not(write, sparse_run):
    closed = verify(write(sparse_run, records=11))
    assert closed.sound
    assert closed.complete
    assert closed.notes == ()
    assert (closed.last_step, closed.journal) == (10, 0)
    running = verify(write(sparse_run, records=13, close=False, name="open.zarr"))
    assert running.sound
    assert (running.last_step, running.journal) == (12, 3)


def test_no_store_is_an_error(tmp_path):
    with pytest.raises(StoreError, match="no store at"):
        verify(tmp_path)


def test_a_flip_in_any_file_is_found(write, sparse_run):
    path = write(sparse_run, records=11, close=False)
    rng = random.Random(0)
    for file in files(path):
        undo = flip_byte(file, rng)
        assert not verify(path).sound, file
        if "/c/" not in file.as_posix() and file.name != ".root.json":
            with pytest.raises(StoreError):
                _ = open_store(path).sketch
        undo()
    assert verify(path).sound


def test_a_missing_file_is_found(write, sparse_run):
    path = write(sparse_run, records=11)
    for file in files(path):
        content = file.read_bytes()
        file.unlink()
        if file.name == ".root.json":
            assert verify(path).sound, "stores of before have no spare copy"
            file.write_bytes(content)
            continue
        with pytest.raises(StoreError):
            open_store(path)
        if file.parent != path or file.name != "zarr.json":
            assert not verify(path).sound, file
        file.write_bytes(content)
    assert verify(path).sound


def test_every_reader_refuses_a_flipped_chunk(write, sparse_run):
    path = write(sparse_run, records=11)
    rng = random.Random(1)
    for chunk in path.glob("output_embedding/c/*/*/0"):
        undo = flip_byte(chunk, rng, at=0)
        assert raises_everywhere(path, "output_embedding") == ["zarr", "xarray", "tensorstore"]
        undo()


def test_repair_drops_what_is_torn_and_folds_the_rest(write, sparse_run):
    path = write(sparse_run, records=11, close=False)
    last = sorted((path / ".journal").iterdir())[-1]
    last.write_bytes(last.read_bytes()[:-5])
    (path / ".abc.partial").write_bytes(b"torn")
    assert not verify(path).sound
    done = repair(path)
    assert any("step 10 is lost" in line for line in done)
    after = verify(path)
    assert after.sound, after.problems
    assert (after.last_step, after.journal) == (9, 0)
    assert not (path / ".abc.partial").exists()
    np.testing.assert_array_equal(open_store(path).output_embedding(9), sparse_run.matrix(9))
    resumed = StoreWriter(path, sparse_run.layout, mode="resume")
    sparse_run.append(resumed, [10])
    resumed.close()
    assert verify(path).sound


def test_a_journal_file_that_is_gone_is_noticed(write, sparse_run):
    path = write(sparse_run, records=13, close=False)
    sorted((path / ".journal").iterdir())[-2].unlink()
    with pytest.raises(StoreError, match=r"lost the journal's records of the steps \[11\]"):
        open_store(path)
    assert not verify(path).sound
    repair(path)
    assert open_store(path).steps.tolist() == [*range(11), 12]


def test_repair_mends_metadata_and_a_lost_manifest(write, sparse_run):
    path = write(sparse_run, records=11)
    (path / "step" / "zarr.json").write_text("{}")
    assert [problem.key for problem in verify(path).problems] == ["step/zarr.json"]
    repair(path)
    assert verify(path).sound
    next(path.glob(".manifest-*")).unlink()
    assert not verify(path).sound
    # record 10 has not every variable: such chunks could as well be older
    with pytest.raises(StoreError, match=r"Nothing proves that .*probe.heldout_spearman"):
        repair(path)


def test_a_lost_manifest_is_listed_anew_where_every_chunk_shows_its_end(write, sparse_run):
    path = write(sparse_run, records=10)
    next(path.glob(".manifest-*")).unlink()
    repair(path)
    assert verify(path).sound
    store = open_store(path)
    assert store.complete
    np.testing.assert_array_equal(store.output_embedding(9), sparse_run.matrix(9))


def test_a_damaged_chunk_stays_damaged_and_says_what_is_lost(write, sparse_run):
    path = write(sparse_run, records=11)
    chunk = path / "output_embedding" / "c" / "0" / "0" / "0"
    flip_byte(chunk, random.Random(2), at=0)
    assert repair(path) == []
    (problem,) = verify(path).problems
    assert problem.key == "output_embedding/c/0/0/0"
    assert "Entries 0 to 3 of output_embedding are lost" in problem.remedy


def test_nan_and_gaps_are_notes(write, run, tmp_path):
    writer = StoreWriter(tmp_path / "nan.zarr", run.layout)
    matrix = run.matrix(0)
    matrix[3, 1] = np.nan
    for step in (0, 1, 2, 9, 10, 11):
        writer.append(step, {}, snapshot=matrix)
    writer.close()
    found = verify(writer.path)
    assert found.sound
    assert any("rows with NaN" in note.what for note in found.notes)
    assert any("between 2 and 9" in note.what for note in found.notes)
    json.dumps(found.to_dict(), allow_nan=False)


def test_gaps_are_no_log_grid():
    assert list(gaps(np.array([0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 2000, 3000]))) == []
    assert list(gaps(np.array([0, 1, 2, 5, 6]))) == [(2, 5)]


def test_a_compacted_store_is_sound(write, sparse_run):
    path = write(sparse_run, records=11)
    compact(path)
    assert verify(path).sound
    assert open_store(path).summary()["profile"] == "archive"


@pytest.mark.parametrize("form", ["safetensors", "npy"])
def test_export_is_bit_exact(write, run, tmp_path, form):
    from safetensors.numpy import load_file

    store = open_store(write(run, records=3))
    out = export_step(store, step=1, out=tmp_path / "m" / f"a.{form}", form=form)
    matrix = load_file(out)["output_embedding"] if form == "safetensors" else np.load(out, allow_pickle=False)
    np.testing.assert_array_equal(matrix, run.matrix(1))
    with pytest.raises(FileExistsError, match="there already"):
        export_step(store, step=1, out=out, form=form)
    with pytest.raises(ValueError, match="no snapshot at step 9"):
        export_step(store, step=9, out=tmp_path / "b", form=form)


def test_a_store_that_is_written_meanwhile_is_never_called_damaged(tmp_path, sparse_run, monkeypatch):
    # a fold happens after each file that is read: nothing that was read first is there any more at the end
    writer = StoreWriter(tmp_path / "run.zarr", sparse_run.layout)
    steps = iter(range(10_000))
    sparse_run.append(writer, (next(steps) for _ in range(11)))
    view, busy = LocalStorage.mmap, []

    def view_and_write(self, key):
        content = view(self, key)
        if not busy:
            busy.append(1)
            sparse_run.append(writer, (next(steps) for _ in range(5)))
            busy.clear()
        return content

    monkeypatch.setattr(LocalStorage, "mmap", view_and_write)
    found = verify(writer.path)
    assert found.problems == ()
    assert any("writes this store" in note.what for note in found.notes)
    monkeypatch.undo()
    assert verify(writer.path).problems == ()


def test_damage_of_a_running_store_is_damage(tmp_path, sparse_run):
    writer = StoreWriter(tmp_path / "run.zarr", sparse_run.layout)
    sparse_run.append(writer, range(30))
    undo = flip_byte(writer.path / "output_embedding" / "c" / "0" / "0" / "0", random.Random(0))
    problem = verify(writer.path).problems[0]
    assert problem.key == "output_embedding/c/0/0/0"
    assert "End the run first" in problem.remedy
    undo()
    with pytest.raises(StoreError, match="is being written by"):
        repair(writer.path)
    assert verify(writer.path).sound


def test_a_negative_step_is_refused_before_anything_is_cut(write, sparse_run):
    path = write(sparse_run, records=11)
    before = {file: file.read_bytes() for file in files(path)}
    with pytest.raises(ValueError, match="restart_step=-1; steps are 0 or more"):
        StoreWriter(path, sparse_run.layout, mode="resume", restart_step=-1)
    assert {file: file.read_bytes() for file in files(path)} == before


def test_repair_writes_a_damaged_spare_copy_of_the_root_anew(write, sparse_run):
    path = write(sparse_run, records=11)
    spare = path / ".root.json"
    spare.write_bytes(spare.read_bytes()[:100])
    [problem] = verify(path).problems
    assert problem.key == ".root.json"
    assert any(".root.json" in line for line in repair(path))
    assert spare.read_bytes() == (path / "zarr.json").read_bytes()
    assert verify(path).sound
