"""Creating, overwriting, resuming and cutting; and what a writer refuses."""

import errno
import json
import zlib
from dataclasses import replace

import numpy as np
import pytest
import zarr

from trainhooks.store import StoreError, StoreWriter, check_place, open_store
from trainhooks.store.format.journal import JournalRecord, write_piece
from trainhooks.store.storage.local import LocalStorage


def journal_files(path):
    """Names of the files in the journal."""
    folder = path / ".journal"
    return sorted(file.name for file in folder.iterdir()) if folder.exists() else []


def records_of(path):
    """What a reader can see, for comparing two stores."""
    store = open_store(path)
    columns = {name: store[name] for name in store.names}
    return columns | {
        "step": store.steps,
        "snapshot_step": store.snapshot_steps,
        "sketch": store.sketch,
        "matrices": np.array(list(store.snapshots)),
        "counts": np.array([store.label_counts(step) for step in store.snapshot_steps[-3:]]),
    }


@pytest.mark.parametrize(("cut", "close"), [(None, False), (0, True), (3, False), (8, True), (30, True)])
def test_a_resumed_run_is_the_run_that_never_stopped(sparse_run, write, cut, close):
    """Whatever the cut meets (a full block, half a block, the journal), the rest is written over it."""
    other = replace(sparse_run, layout=replace(sparse_run.layout, attributes={"seed": 3, "note": "second"}))
    path = write(sparse_run, records=15, close=close)
    writer = StoreWriter(path, other.layout, mode="resume", restart_step=cut)
    kept = 15 if cut is None else min(cut + 1, 15)
    assert writer.last_step == kept - 1
    assert open_store(path).steps.tolist() == list(range(kept))
    assert not open_store(path).complete
    other.append(writer, range(kept, 22))
    straight = records_of(write(sparse_run, records=22, close=False, name="straight.zarr"))
    for finished in (False, True):
        if finished:
            writer.close()
            assert not (path / ".journal").exists()
        for name, got in records_of(path).items():
            np.testing.assert_array_equal(got, straight[name], err_msg=name)
    store = open_store(path)
    assert store.restarts == [{"attempt": 1, "restart_step": cut, "records": kept, "changed": {"note": "second"}}]
    assert store.attributes["seed"] == 3
    assert zarr.open_array(path, path="step", mode="r")[:].tolist() == list(range(22))


def test_all_but_the_first_record_can_be_cut(run, write):
    path = write(run, records=40)
    run_from_five = StoreWriter(path, run.layout, mode="resume", restart_step=4)
    assert run_from_five.last_step == 4
    run_from_five.release()
    with pytest.raises(ValueError, match="steps are 0 or more"):
        StoreWriter(path, run.layout, mode="resume", restart_step=-1)
    again = StoreWriter(path, run.layout, mode="resume", restart_step=0)
    assert again.last_step == 0
    assert len(open_store(path).snapshots) == 1
    run.append(again, range(1, 3))
    again.close()
    assert open_store(path).steps.tolist() == [0, 1, 2]
    assert [restart["attempt"] for restart in open_store(path).restarts] == [1, 2]


def test_a_cut_hides_the_journal_even_before_its_files_are_gone(run, write, monkeypatch):
    path = write(run, records=20, close=False)
    monkeypatch.setattr("trainhooks.store.writing.writer.clean", lambda *_, **__: None)
    writer = StoreWriter(path, run.layout, mode="resume", restart_step=9)
    assert len(list((path / ".journal").iterdir())) == 20
    assert open_store(path).steps.tolist() == list(range(10))
    run.append(writer, range(10, 12))
    assert open_store(path).steps.tolist() == list(range(12))


def test_an_interrupted_fold_is_repeated(run, tmp_path, monkeypatch):
    writer = StoreWriter(tmp_path / "s.zarr", run.layout)
    run.append(writer, range(31))

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("trainhooks.store.writing.writer.commit", fail)
        with pytest.raises(StoreError, match="fold step 31 into the arrays"):
            run.append(writer, [31])
    # the arrays have grown, the root has not: 32 records, all from the journal
    assert zarr.open_array(writer.path, path="step", mode="r").shape == (32,)
    assert open_store(writer.path).steps.tolist() == list(range(32))
    writer.release()
    again = StoreWriter(writer.path, run.layout, mode="resume")
    assert journal_files(writer.path) == []
    run.append(again, range(32, 34))
    again.close()
    straight = StoreWriter(tmp_path / "t.zarr", run.layout)
    run.append(straight, range(34))
    for name, wanted in records_of(straight.path).items():
        np.testing.assert_array_equal(records_of(writer.path)[name], wanted, err_msg=name)


def test_the_writer_goes_on_after_a_fold_that_failed(run, tmp_path, monkeypatch):
    writer = StoreWriter(tmp_path / "s.zarr", replace(run.layout, block=4))
    with monkeypatch.context() as patched:
        patched.setattr("trainhooks.store.writing.writer.fold_snapshots", lambda *_, **__: 1 / 0)
        run.append(writer, range(3))
        for step in range(3, 6):
            with pytest.raises(ZeroDivisionError):
                run.append(writer, [step])
    run.append(writer, range(6, 9))
    assert zarr.open_array(writer.path, path="output_embedding", mode="r").shape[0] == 8
    np.testing.assert_array_equal(list(open_store(writer.path).snapshots), [run.matrix(s) for s in range(9)])


def test_a_fold_opens_each_journal_file_once(run, tmp_path, monkeypatch):
    """So its bytes are summed once, for its matrix and its numbers."""
    opened: list[int] = []
    whole = JournalRecord.open

    def noted(storage, entry, layout):
        opened.append(entry.step)
        return whole(storage, entry, layout)

    writer = StoreWriter(tmp_path / "s.zarr", replace(run.layout, block=4))
    monkeypatch.setattr(JournalRecord, "open", noted)
    run.append(writer, range(8))
    assert sorted(opened) == list(range(8))


def test_large_arrays_of_a_record_lie_where_its_header_says(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    arrays = {
        "a": np.arange(3.0),
        "b": np.arange(1 << 16, dtype="<f4"),
        "c": np.arange(5, dtype="<f4"),
        "d": np.float64(7),
    }
    arrays |= {"e": np.arange(1 << 20, dtype="<u2")[::2].reshape(1 << 10, -1), "f": np.arange(1 << 19, dtype="|i1")}
    piece, size = write_piece(LocalStorage(tmp_path), arrays, step=1, attempt=0, has_snapshot=False)
    found = safetensors.load_file(tmp_path / piece.key)
    assert size == (tmp_path / piece.key).stat().st_size
    assert {name: array.shape for name, array in found.items()} == {name: a.shape for name, a in arrays.items()}
    for name, array in found.items():
        np.testing.assert_array_equal(array, arrays[name])


@pytest.mark.parametrize("closed", [9, 11, 15])
def test_a_block_that_was_closed_early_is_written_anew_when_it_is_full(run, tmp_path, closed):
    layout = replace(run.layout, block=8)
    first = StoreWriter(tmp_path / "s.zarr", layout)
    run.append(first, range(closed))
    first.close()
    writer = StoreWriter(first.path, layout, mode="resume")
    for step in range(closed, 15):
        run.append(writer, [step])
        assert writer.backlog == step + 1 - closed
    run.append(writer, [15])
    assert writer.backlog == 0
    writer.close()
    np.testing.assert_array_equal(list(open_store(writer.path).snapshots), [run.matrix(s) for s in range(16)])


def test_a_failed_record_leaves_no_trace(run, tmp_path, monkeypatch):
    writer = StoreWriter(tmp_path / "s.zarr", run.layout)
    run.append(writer, [0])

    def fail(file, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("trainhooks.store.storage.base.ChecksumWriter.write", fail)
        with pytest.raises(StoreError, match=r"cannot write step 1 to .*No space left"):
            run.append(writer, [1])
    assert len(journal_files(writer.path)) == 1
    assert not [name for name in writer.path.iterdir() if name.name.endswith(".partial")]
    assert writer.last_step == 0
    run.append(writer, [1])
    assert open_store(writer.path).steps.tolist() == [0, 1]


def test_resuming_with_another_layout_lists_the_differences(run, write):
    path = write(run, records=3)
    before = (path / "zarr.json").read_bytes()
    counts = np.arange(70)[::-1].copy()
    other = replace(run.layout, dim=4, precision="bfloat16", token_count=counts, variables=run.layout.variables[1:])
    with pytest.raises(StoreError) as caught:
        StoreWriter(path, other, mode="resume")
    for part in (
        "dim: the store has 3, the run 4",
        "precision: the store has 'float32', the run 'bfloat16'",
        "variable probe.heldout_spearman: in the store, not in the run",
        "token_count: other values",
    ):
        assert part in str(caught.value)
    assert (path / "zarr.json").read_bytes() == before


def test_token_facts_may_be_left_out_when_resuming_but_not_added(run, write):
    path = write(run, records=3)
    StoreWriter(path, replace(run.layout, token_count=None, token_text=None), mode="resume").close()
    np.testing.assert_array_equal(open_store(path).token_counts, run.layout.token_count)
    bare = replace(run, layout=replace(run.layout, token_count=None))
    path = write(bare, records=1, name="bare.zarr")
    with pytest.raises(StoreError, match="token_count: in the run, not in the store"):
        StoreWriter(path, run.layout, mode="resume")


def test_whole_run_values_do_not_outlive_their_run(run, write):
    path = write(run, records=3, close=False)
    writer = StoreWriter(path, run.layout, mode="resume")
    writer.finish({"convergence.cosine_to_final": np.ones((3, 2))})
    writer.close()
    writer = StoreWriter(path, run.layout, mode="resume", restart_step=1)
    assert np.isnan(open_store(path)["convergence.cosine_to_final"]).all()
    run.append(writer, [2])
    writer.close()
    assert np.isnan(zarr.open_array(path, path="convergence.cosine_to_final", mode="r")[:]).all()


def test_create_refuses_a_store_and_overwrite_replaces_it(run, write):
    path = write(run, records=3)
    (path / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match='Pass mode="overwrite" to replace it, or mode="resume"'):
        StoreWriter(path, run.layout)
    assert len(open_store(path).steps) == 3
    small = replace(run.layout, variables=(), sketch_size=0)
    StoreWriter(path, small, mode="overwrite").close()
    assert len(open_store(path).steps) == 0
    assert (path / "notes.txt").read_text() == "mine"
    assert not (path / "sketch").exists()


@pytest.mark.parametrize("mode", ["create", "overwrite"])
def test_a_folder_of_someone_else_is_never_touched(run, tmp_path, mode):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(StoreError, match="not a trainhooks store"):
        StoreWriter(tmp_path, run.layout, mode=mode)
    zarr.create_group(tmp_path / "theirs.zarr", attributes={"a": 1})
    with pytest.raises(StoreError, match="not a trainhooks store"):
        StoreWriter(tmp_path / "theirs.zarr", run.layout, mode=mode)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_an_empty_folder_and_missing_parents_are_fine(run, tmp_path):
    StoreWriter(tmp_path, run.layout).close()
    StoreWriter(tmp_path / "a" / "b.zarr", run.layout, mode="overwrite").close()
    assert len(open_store(tmp_path / "a" / "b.zarr").steps) == 0


def test_an_interrupted_creation_says_so_and_can_be_overwritten(run, tmp_path, monkeypatch):
    path = tmp_path / "s.zarr"
    with monkeypatch.context() as patched:
        patched.setattr("trainhooks.store.writing.lifecycle.array_metadata", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            StoreWriter(path, run.layout)
    with pytest.raises(StoreError, match=r'start anew with mode="overwrite"'):
        open_store(path)
    StoreWriter(path, run.layout, mode="overwrite").close()
    assert open_store(path).complete


def test_paths_that_cannot_be_written(run, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "s.zarr"):
        with pytest.raises(StoreError, match=r"is a file|cannot open the store"):
            StoreWriter(path, run.layout)
    with pytest.raises(StoreError, match="no store at"):
        StoreWriter(tmp_path / "nothing.zarr", run.layout, mode="resume")

    def read_only(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("pathlib.Path.mkdir", read_only)
    with pytest.raises(StoreError, match=r"cannot open the store .*Read-only file system"):
        StoreWriter(tmp_path / "s.zarr", run.layout)


def test_a_place_can_be_checked_without_touching_it(run, write, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.tex").write_text("mine")
    taken = write(run, records=1)
    before = sorted(tmp_path.rglob("*"))
    for mode in ("create", "overwrite"):
        check_place(tmp_path / "new" / "s.zarr", mode=mode)
        for name, said in (("file", "is a file"), ("file/s.zarr", "is no folder"), ("theirs", "not a trainhooks")):
            with pytest.raises(StoreError, match=said):
                check_place(tmp_path / name, mode=mode)
    check_place(taken, mode="overwrite")
    check_place(taken, mode="resume")
    with pytest.raises(StoreError, match="holds a store already"):
        check_place(taken, mode="create")
    with pytest.raises(StoreError, match="no store at"):
        check_place(tmp_path / "new", mode="resume")
    with pytest.raises(ValueError, match="mode 'append' is not known"):
        check_place(taken, mode="append")
    assert sorted(tmp_path.rglob("*")) == before


def test_arguments_that_make_no_sense(run, tmp_path):
    with pytest.raises(ValueError, match="mode 'append' is not known"):
        StoreWriter(tmp_path / "s.zarr", run.layout, mode="append")
    with pytest.raises(ValueError, match='needs mode="resume"'):
        StoreWriter(tmp_path / "s.zarr", run.layout, restart_step=3)
    assert not (tmp_path / "s.zarr").exists()


def test_every_problem_of_a_record_is_reported_and_nothing_is_written(run, tmp_path):
    writer = StoreWriter(tmp_path / "s.zarr", run.layout)
    with pytest.raises(ValueError, match="does not fit the store's layout") as caught:
        writer.append(
            0,
            {
                "loss": 1.0,
                "convergence.cosine_to_final": np.ones(2),
                "convergence.norm": np.ones(3),
                "count.updates": 0.5,
                "probe.heldout_spearman": np.array("high"),
            },
            sketch=np.ones((2, 4)),
            snapshot=np.ones((70, 4)),
            label_counts=np.ones(3),
        )
    for part in (
        "variable 'loss' was not declared",
        "'convergence.cosine_to_final' goes to finish()",
        "'convergence.norm' has shape (3,), needed (2,)",
        "'count.updates' is float64 and does not fit its dtype int64",
        "'probe.heldout_spearman' is <U4",
        "the sketch has shape (2, 4), needed (2, 5)",
        "the snapshot has shape (70, 4), needed (70, 3)",
        "the snapshot is float64, needed float32",
        "label_counts are float64 (3,), needed whole numbers (70,)",
    ):
        assert part in str(caught.value)
    assert journal_files(writer.path) == []


@pytest.mark.parametrize("value", [np.inf, np.nan, 2.0**63, -(2.0**64), 300.5])
def test_whole_numbers_must_be_whole_and_fit(run, tmp_path, value):
    writer = StoreWriter(tmp_path / "s.zarr", run.layout)
    with pytest.raises(ValueError, match="does not fit its dtype"):
        writer.append(0, {"count.updates": value})
    writer.append(0, {"count.updates": 300.0})
    assert open_store(writer.path)["count.updates"].tolist() == [300]


def test_steps_increase(run, tmp_path):
    writer = StoreWriter(tmp_path / "s.zarr", run.layout)
    with pytest.raises(ValueError, match="got step -1"):
        writer.append(-1, {})
    writer.append(5, {})
    for step in (5, 4):
        with pytest.raises(ValueError, match="the last one is 5"):
            writer.append(step, {})


def test_what_the_layout_has_no_place_for(tmp_path, layout):
    writer = StoreWriter(tmp_path / "s.zarr", replace(layout, snapshots=False, sketch_size=0))
    with pytest.raises(ValueError, match="snapshots=False"):
        writer.append(0, {}, snapshot=np.zeros((70, 3), np.float32))
    with pytest.raises(ValueError, match="sketch_size=0"):
        writer.append(0, {}, sketch=np.zeros((2, 5), np.float32))


def test_finish_checks_what_it_gets(run, tmp_path):
    writer = StoreWriter(tmp_path / "s.zarr", run.layout)
    run.append(writer, range(2))
    with pytest.raises(ValueError, match=r"has shape \(3, 2\), needed \(2, 2\)"):
        writer.finish({"convergence.cosine_to_final": np.ones((3, 2))})
    with pytest.raises(ValueError, match=r"goes to append\(\)"):
        writer.finish({"probe.heldout_spearman": np.ones(2)})


def test_strided_arrays_are_written_as_they_read(run, tmp_path):
    writer = StoreWriter(tmp_path / "s.zarr", run.layout)
    matrix = np.asfortranarray(run.matrix(0))
    sketch = np.repeat(run.sketch(0), 2, axis=1)[:, ::2]
    writer.append(0, {}, snapshot=matrix, sketch=sketch)
    store = open_store(writer.path)
    np.testing.assert_array_equal(store.output_embedding(0), matrix)
    np.testing.assert_array_equal(store.sketch[0], sketch)


def test_the_caller_may_reuse_its_buffer(run, tmp_path):
    writer = StoreWriter(tmp_path / "s.zarr", run.layout)
    matrix = run.matrix(0)
    writer.append(0, {}, snapshot=matrix)
    matrix[:] = 7
    writer.close()
    np.testing.assert_array_equal(open_store(writer.path).output_embedding(0), run.matrix(0))


def test_the_journal_is_plain_safetensors(run, write):
    """Read without this package or safetensors, as `store/SPEC.md` describes it."""
    path = write(replace(run, layout=replace(run.layout, precision="bfloat16")), records=2, close=False)
    files = journal_files(path)
    content = (path / ".journal" / files[1]).read_bytes()
    assert files[1] == f"000000000001-0000-0000of0001-snapshot-{zlib.crc32(content):08x}.safetensors"
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    assert header.pop("__metadata__") == {
        "format": "1",
        "step": "1",
        "previous": "0",
        "attempt": "0",
        "piece": "0",
        "pieces": "1",
        "rows": "0:70",
    }
    kinds = {name: (about["dtype"], about["shape"]) for name, about in header.items()}
    assert kinds == {
        "probe.heldout_spearman": ("F64", []),
        "convergence.norm": ("F32", [2]),
        "count.updates": ("I64", []),
        "spectrum.top": ("F64", [2]),
        "sketch": ("F32", [2, 5]),
        "output_embedding": ("U16", [70, 3]),
        "label_counts": ("I64", [70]),
    }
    begin, end = header["output_embedding"]["data_offsets"]
    upper = np.frombuffer(content[start + begin : start + end], "<u2").astype("<u4")
    matrix = (upper << 16).view("<f4").reshape(70, 3)
    assert np.abs(matrix - run.matrix(1)).max() < 2.0**-7
    np.testing.assert_array_equal(matrix, open_store(path).output_embedding(1))


def test_provenance_is_compared_as_json(run, write):
    shaped = replace(run, layout=replace(run.layout, attributes={"betas": (0.9, 0.95)}))
    path = write(shaped, records=1)
    StoreWriter(path, shaped.layout, mode="resume").close()
    assert open_store(path).attributes == {"betas": [0.9, 0.95]}
    assert open_store(path).restarts[0]["changed"] == {}


def test_power_syncs_a_record_and_its_name_before_it_is_acknowledged(run, tmp_path, synced):
    writer = StoreWriter(tmp_path / "s.zarr", run.layout, durability="power")
    del synced[:]
    run.append(writer, [0])
    assert len(synced) == 3  # the file, the journal's folder, and the folder in which that is new
    run.append(writer, [1])
    assert len(synced) == 5


def test_process_durability_syncs_no_record_and_each_commit(run, tmp_path, synced):
    writer = StoreWriter(tmp_path / "s.zarr", run.layout)
    del synced[:]
    run.append(writer, range(31))
    assert synced == []
    run.append(writer, [31])
    assert synced


def test_the_commit_comes_after_all_it_speaks_of(run, tmp_path, monkeypatch):
    keys = []
    plain = LocalStorage.put_streamed

    def noted(storage, write):
        def named(file):
            keys.append(write(file))
            return keys[-1]

        return plain(storage, named)

    writer = StoreWriter(tmp_path / "s.zarr", run.layout)
    run.append(writer, range(31))
    monkeypatch.setattr(LocalStorage, "put_streamed", noted)
    run.append(writer, [31])
    kinds = ["shard" if key.startswith("output_embedding/c") else key.rpartition("/")[2] for key in keys[1:]]
    assert kinds[0] == "shard"
    assert kinds[-3].startswith(".manifest-")
    assert keys[-2:] == [".root.json", "zarr.json"]
    first_metadata = kinds.index("zarr.json")
    assert set(kinds[first_metadata:-3]) == {"zarr.json"}
    assert json.loads((writer.path / kinds[-3]).read_text())["files"].keys() >= set(keys[1:-3])
    assert journal_files(writer.path) == []


def test_a_flipped_byte_in_the_journal_is_found(run, write):
    path = write(run, records=1, close=False)
    (name,) = journal_files(path)
    content = bytearray((path / ".journal" / name).read_bytes())
    content[-5] ^= 1
    (path / ".journal" / name).write_bytes(content)
    with pytest.raises(StoreError, match=r"damaged \(its bytes have checksum"):
        open_store(path).output_embedding(0)


def test_a_flipped_byte_in_the_root_is_found(run, write):
    path = write(run, records=1)
    content = (path / "zarr.json").read_bytes()
    for position in range(0, len(content), max(1, len(content) // 97)):
        flipped = bytearray(content)
        flipped[position] ^= 4
        (path / "zarr.json").write_bytes(flipped)
        with pytest.raises(StoreError):
            open_store(path)


def test_the_manifest_lists_every_file(run, write):
    path = write(replace(run, layout=replace(run.layout, block=4)), records=6)
    StoreWriter(path, replace(run.layout, block=4), mode="resume", restart_step=2).close()
    (manifest,) = path.glob(".manifest-*.json")
    listed = json.loads(manifest.read_text())["files"]
    there = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    kept = {key for key in there if key.startswith(".kept-")}
    assert set(listed) == there - {"zarr.json", ".root.json", manifest.name} - kept
    for key, (size, checksum) in listed.items():
        content = (path / key).read_bytes()
        assert (size, checksum) == (len(content), f"{zlib.crc32(content):08x}"), key
