import json
import re
import shutil
import zlib

import numpy as np
import pytest

from trainhooks.store import StoreError, StoreWriter, open_store


def test_properties(run, write):
    store = open_store(write(run, records=3))
    assert (store.vocab, store.dim, store.groups, store.sketch_size) == (70, 3, ("embedding", "block.0"), 5)
    assert store.attributes == {"seed": 3, "model": {"layers": 2}}
    assert store.names == [variable.name for variable in run.layout.variables]
    assert store.token_texts == list(run.layout.token_text)
    np.testing.assert_array_equal(store.token_counts, np.arange(70))
    assert store.restarts == []


def test_metrics_as_a_dataset(run, write):
    dataset = open_store(write(run, records=35, close=False)).metrics()
    assert dataset["step"].values.tolist() == list(range(35))
    assert dataset["convergence.norm"].sel(step=34, group="embedding") == 34
    assert dataset["convergence.norm"].attrs["unit"] == "norm"
    assert np.isnan(dataset["convergence.cosine_to_final"]).all()


@pytest.mark.parametrize("close", [True, False])
def test_summary_is_json(run, write, close):
    path = write(run, records=34, close=close)
    summary = open_store(path).summary()
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary["closed"] == close
    assert summary["records"] == summary["snapshots"] == 34
    assert summary["shapes"] == {"output_embedding": [34, 70, 3], "sketch": [34, 2, 5]}
    about = summary["variables"]["probe.heldout_spearman"]
    assert (about["unit"], about["first"], about["last"]) == ("1", 1 / 128, 33 / 128)
    assert "first" not in summary["variables"]["convergence.norm"]
    files = [file for file in path.rglob("*") if file.is_file()]
    assert summary["disk_bytes"] == sum(file.stat().st_size for file in files)
    scalars = 34 * (8 + 2 * 4 + 8 + 2 * 8 + 2 * 8)
    assert summary["raw_bytes"] == 34 * (70 * 3 * 4 + 2 * 5 * 4 + 8 + 8 + 70 * 8) + scalars


def test_asking_for_what_is_not_there(sparse_run, write):
    store = open_store(write(sparse_run, records=8))
    with pytest.raises(ValueError, match=r"no snapshot at step 4; the nearest are \[3, 6\]"):
        store.output_embedding(4)
    with pytest.raises(ValueError, match=r"no snapshot at step 99; the nearest are \[6\]"):
        store.label_counts(99)
    with pytest.raises(ValueError, match="rows 0 to 69"):
        store.token_path(70)
    with pytest.raises(KeyError, match=r"no metric 'loss'; it has probe\.heldout_spearman"):
        store["loss"]
    with pytest.raises(IndexError, match="snapshot 3 of 3"):
        store.snapshots[3]


def test_what_was_never_given(tmp_path, layout):
    from dataclasses import replace

    bare = replace(layout, sketch_size=0, token_count=None, token_text=None)
    writer = StoreWriter(tmp_path / "s.zarr", bare)
    writer.append(0, {}, snapshot=np.zeros((70, 3), np.float32))
    for close in (False, True):
        if close:
            writer.close()
        store = open_store(writer.path)
        assert store.token_counts is None
        assert store.token_texts is None
        with pytest.raises(ValueError, match="keeps no sketches"):
            _ = store.sketch
        with pytest.raises(ValueError, match="no label counts"):
            store.label_counts(0)


def test_going_through_the_snapshots_decodes_each_block_once(run, write, monkeypatch):
    store = open_store(write(run, records=70, close=False))
    read = []
    plain = store.snapshots._read
    monkeypatch.setattr(store.snapshots, "_read", lambda *part: read.append(part) or plain(*part))
    for index, step in enumerate(store.snapshots.steps):
        np.testing.assert_array_equal(store.snapshots[index], run.matrix(step))
    assert read == [(0, 32), (32, 64)]  # two folded blocks; six more in the journal


def test_large_blocks_are_read_in_parts(run, write, monkeypatch):
    monkeypatch.setattr("trainhooks.store.reading.snapshots.MAX_CACHED_BYTES", 5 * 4 * 70 * 3)
    snapshots = open_store(write(run, records=40)).snapshots
    for index in [*range(40), 3, -1, -40]:
        np.testing.assert_array_equal(snapshots[index], run.matrix(index % 40))
        assert len(snapshots._cache) <= 5


def test_a_matrix_is_the_callers_own(run, write):
    snapshots = open_store(write(run, records=4)).snapshots
    snapshots[1][:] = 0
    np.testing.assert_array_equal(snapshots[1], run.matrix(1))


def test_an_open_store_outlives_the_fold_and_an_open_journal_is_a_moment(run, tmp_path):
    writer = StoreWriter(tmp_path / "s.zarr", run.layout)
    run.append(writer, range(31))
    store = open_store(writer.path)
    run.append(writer, range(31, 40))  # folds, and deletes what `store` has mapped
    assert len(store.steps) == 31
    np.testing.assert_array_equal(store.output_embedding(30), run.matrix(30))
    np.testing.assert_array_equal(store.token_path(5), [run.matrix(step)[5] for step in range(31)])
    assert len(open_store(writer.path).steps) == 40


def test_a_record_in_the_journal_and_in_the_arrays_counts_once(run, tmp_path):
    writer = StoreWriter(tmp_path / "s.zarr", run.layout)
    run.append(writer, range(31))
    shutil.copytree(writer.path / ".journal", tmp_path / "kept")
    run.append(writer, range(31, 33))
    # a kill between the commit and the deletion leaves the journal as it was
    shutil.copytree(tmp_path / "kept", writer.path / ".journal", dirs_exist_ok=True)
    assert open_store(writer.path).steps.tolist() == list(range(33))
    writer.release()
    again = StoreWriter(writer.path, run.layout, mode="resume")
    assert again.last_step == 32
    run.append(again, range(33, 40))
    again.close()
    store = open_store(writer.path)
    assert store.steps.tolist() == store.snapshot_steps.tolist() == list(range(40))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (shutil.rmtree, r"it has no zarr\.json"),
        (lambda path: (path / "zarr.json").write_text("{"), "cannot read"),
        (lambda path: (path / "zarr.json").write_text('{"attributes": {}}'), "not a trainhooks store"),
        (lambda path: (path / "zarr.json").write_text("[]"), "not a trainhooks store"),
    ],
)
def test_what_is_no_store(run, write, damage, said):
    path = write(run, records=2)
    damage(path)
    with pytest.raises(StoreError, match=said):
        open_store(path)


def edit_root(path, edit):
    root = json.loads((path / "zarr.json").read_text())
    edit(root)
    sums = '"checksum": "{:08x}"'
    text = re.sub('"checksum": "[0-9a-f]{8}"', sums.format(0), json.dumps(root), count=1)
    (path / "zarr.json").write_text(text.replace(sums.format(0), sums.format(zlib.crc32(text.encode())), 1))


def test_another_format_is_refused(run, write):
    path = write(run, records=2)
    edit_root(path, lambda root: root["attributes"]["trainhooks"].update(format=99))
    with pytest.raises(StoreError, match="has format 99; this version reads format 1"):
        open_store(path)


def test_every_damaged_array_is_reported(run, write):
    path = write(run, records=2)

    def edit(root):
        arrays = root["consolidated_metadata"]["metadata"]
        del arrays["sketch"]
        arrays["output_embedding"]["shape"][1] = 71
        arrays["step"]["data_type"] = "float64"

    edit_root(path, edit)
    with pytest.raises(StoreError) as caught:
        open_store(path)
    for part in ("array sketch is missing", r"output_embedding: shape is [2, 71, 3]", "step: data_type"):
        assert part in str(caught.value)


def test_a_damaged_declaration_is_reported(run, write):
    path = write(run, records=2)
    edit_root(path, lambda root: root["attributes"]["trainhooks"]["layout"].pop("vocab"))
    with pytest.raises(StoreError, match="is damaged"):
        open_store(path)


def test_a_damaged_journal_file_is_named(run, write):
    path = write(run, records=2, close=False)
    victim = sorted((path / ".journal").iterdir())[1]
    victim.write_bytes(victim.read_bytes()[:100])
    with pytest.raises(StoreError, match=victim.name):
        open_store(path)
    victim.unlink()
    assert open_store(path).steps.tolist() == [0]


def test_strangers_in_the_journal_are_ignored(run, write):
    path = write(run, records=2, close=False)
    (path / ".0123.partial").write_bytes(b"half a record")
    (path / ".journal" / "notes.txt").write_text("mine")
    assert open_store(path).steps.tolist() == [0, 1]
    StoreWriter(path, run.layout, mode="resume").close()
    assert [file.name for file in (path / ".journal").iterdir()] == ["notes.txt"]
    assert not (path / ".0123.partial").exists()
