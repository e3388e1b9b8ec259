"""Compaction: the same numbers in fewer bytes, whatever interrupts it."""

import json
import sys
import zlib
from dataclasses import replace

import numpy as np
import pytest
import zarr

import trainhooks.cli.compact  # noqa: F401 - registers the command
from trainhooks.cli.base import app
from trainhooks.core.variable import Variable
from trainhooks.store import Layout, StoreError, StoreWriter, open_store
from trainhooks.store.format.compaction_note import NOTE, finish_compaction, replacing
from trainhooks.store.format.profiles import ARCHIVE, LIVE
from trainhooks.store.format.root import read_manifest, read_root
from trainhooks.store.maintenance.compact import compact, copy_with_pcodec
from trainhooks.store.storage.local import LocalStorage
from trainhooks.store.storage.zarr_store import ManifestStore

RECORDS = 10
VOCAB, DIM = 150, 6


@pytest.fixture
def slow_run(tmp_path):
    """A closed store of ten matrices that move slowly, in blocks of four; its path and its matrices."""
    layout = Layout(
        vocab=VOCAB,
        dim=DIM,
        groups=("all",),
        sketch_size=3,
        variables=(Variable("probe.score"),),
        block=4,
        token_text=[f"t{i}" for i in range(VOCAB)],
    )
    rng = np.random.default_rng(0)
    matrices = np.cumsum(rng.standard_normal((RECORDS, VOCAB, DIM)) * 1e-3, axis=0) + rng.standard_normal((VOCAB, DIM))
    matrices = matrices.astype(np.float32)
    matrices[2, 3] = np.nan
    writer = StoreWriter(tmp_path / "run.zarr", layout)
    for step, matrix in enumerate(matrices):
        writer.append(step, {"probe.score": step / 2}, snapshot=matrix, sketch=np.ones((1, 3), np.float32))
    writer.close()
    return tmp_path / "run.zarr", matrices


def check(path, matrices):
    """Everything there is, by this package and by zarr-python alone; every file is as the manifest lists it."""
    store = open_store(path)
    assert store.complete
    assert store["probe.score"].tolist() == [step / 2 for step in range(RECORDS)]
    assert np.array_equal(np.stack([store.snapshots[i] for i in range(RECORDS)]), matrices, equal_nan=True)
    bare = zarr.open_group(path, mode="r")["output_embedding"]
    assert np.array_equal(bare[:], matrices, equal_nan=True)
    storage = LocalStorage(path)
    for key, (size, checksum) in read_manifest(storage, read_root(storage)).items():
        content = storage.read(key)
        assert (len(content), f"{zlib.crc32(content):08x}") == (size, checksum), key
    assert not [name for name in storage.list_dir() if name.endswith(".partial") or name in (NOTE, ".lock")]


def test_compaction_keeps_every_number(slow_run):
    path, matrices = slow_run
    before = open_store(path).summary()
    seen = []
    done = compact(path, profile=ARCHIVE, progress=lambda *count: seen.append(count))
    check(path, matrices)
    assert (done.rewritten, done.kept) == (3, 0)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    shards = sorted((path / "output_embedding/c").rglob("0"))
    assert done.bytes_after == sum(shard.stat().st_size for shard in shards if shard.is_file())
    after = open_store(path).summary()
    assert (before["profile"], after["profile"]) == ("live", "archive")
    apart = {"disk_bytes": 0, "profile": ""}
    assert before | apart == after | apart


def test_compaction_can_be_repeated_and_taken_back(slow_run):
    path, matrices = slow_run
    original = {file: file.read_bytes() for file in path.rglob("*") if file.is_file() and "c" in file.parts}
    compact(path)
    root = (path / "zarr.json").read_bytes()
    again = compact(path)
    assert (again.rewritten, again.kept) == (0, 3)
    assert (path / "zarr.json").read_bytes() == root
    compact(path, profile=LIVE)
    check(path, matrices)
    assert all(file.read_bytes() == content for file, content in original.items())


class Stopped(BaseException):
    """The process ended here."""


@pytest.mark.parametrize("moment", range(1, 13))
def test_an_interrupted_compaction_goes_on(slow_run, monkeypatch, moment):
    """Stopped before each of the writes of a compaction in turn: what a reader sees is whole, and it can go on."""
    path, matrices = slow_run
    original, writes = LocalStorage.put_streamed, []

    def stopping(self, write):
        writes.append(None)
        if len(writes) == moment:
            raise Stopped
        return original(self, write)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "put_streamed", stopping)
        with pytest.raises(Stopped):
            compact(path)
    (path / ".0123.partial").write_bytes(b"what a killed process leaves")
    store = open_store(path)
    assert np.array_equal(np.stack([store.snapshots[i] for i in range(RECORDS)]), matrices, equal_nan=True)
    storage = LocalStorage(path)
    files, note = read_manifest(storage, read_root(storage)), replacing(storage)
    for key, listed in files.items():
        content = storage.read(key)
        assert (len(content), f"{zlib.crc32(content):08x}") in (listed, note.get(key)), key
    compact(path)
    check(path, matrices)


def test_settling_commits_a_shard_that_was_replaced(slow_run, monkeypatch):
    path, matrices = slow_run
    storage = LocalStorage(path)

    def stopped(*_):
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr("trainhooks.store.format.compaction_note.commit", stopped)
        with pytest.raises(Stopped):
            compact(path)
    assert list(replacing(storage)) == ["output_embedding/c/0/0/0"]
    root = read_root(storage)
    store = ManifestStore(storage, files=read_manifest(storage, root))
    finish_compaction(store, root)
    assert replacing(storage) == {}
    check(path, matrices)


def test_a_damaged_note_is_named(slow_run):
    path, _ = slow_run
    (path / NOTE).write_text("[1")
    with pytest.raises(StoreError, match=r"\.compacting\.json is damaged"):
        compact(path)


def test_a_damaged_shard_is_refused_and_stays(slow_run):
    path, _ = slow_run
    shard = path / "output_embedding/c/1/0/0"
    content = bytearray(shard.read_bytes())
    content[40] ^= 1
    shard.write_bytes(content)
    with pytest.raises(StoreError, match=r"chunk 0 of .*c/1/0/0 is damaged"):
        compact(path)
    assert shard.read_bytes() == content
    assert np.isfinite(open_store(path).output_embedding(0)).all()


def test_a_store_in_use_is_refused(slow_run):
    path, matrices = slow_run
    layout = replace(read_root(LocalStorage(path)).layout, token_text=[f"t{i}" for i in range(VOCAB)])
    writer = StoreWriter(path, layout, mode="resume")
    writer.append(RECORDS, {}, snapshot=matrices[0])
    for function in (compact, lambda storage: copy_with_pcodec(storage, out=path.with_name("copy.zarr"))):
        with pytest.raises(StoreError, match="being written by process"):
            function(path)
    writer.release()
    with pytest.raises(StoreError, match="1 journal files that are not folded"):
        compact(path)
    assert not (path / ".lock").exists()


def test_a_resumed_run_goes_on_after_compaction(slow_run):
    path, matrices = slow_run
    compact(path)
    layout = replace(read_root(LocalStorage(path)).layout, token_text=[f"t{i}" for i in range(VOCAB)])
    writer = StoreWriter(path, layout, mode="resume")
    writer.append(RECORDS, {}, snapshot=matrices[0])
    writer.close()
    store = open_store(path)
    assert np.array_equal(store.snapshots[RECORDS], matrices[0], equal_nan=True)
    assert np.array_equal(store.snapshots[RECORDS - 1], matrices[-1], equal_nan=True)


def test_no_store_is_said(tmp_path):
    with pytest.raises(StoreError, match="no store at"):
        compact(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_store_of_numbers_alone_has_nothing_to_compact(tmp_path):
    layout = Layout(vocab=3, dim=2, groups=(), sketch_size=0, variables=(Variable("a.b"),), snapshots=False)
    writer = StoreWriter(tmp_path / "numbers.zarr", layout)
    writer.append(0, {"a.b": 1.0})
    writer.close()
    assert compact(tmp_path / "numbers.zarr").bytes_after == 0


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3 specification")
def test_the_pcodec_copy_has_the_same_numbers(slow_run):
    pytest.importorskip("pcodec")
    import xarray

    path, matrices = slow_run
    out = path.with_name("copy.zarr")
    assert copy_with_pcodec(path, out=out) == sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    with xarray.open_zarr(out) as data:
        assert data["output_embedding"].dims == ("token", "dim", "snapshot_step")
        copy = data["output_embedding"].transpose("snapshot_step", "token", "dim").values
        assert data["probe.score"].values.tolist() == [step / 2 for step in range(RECORDS)]
    assert np.array_equal(copy, matrices, equal_nan=True)
    assert "not core Zarr" in json.loads((out / "zarr.json").read_text())["attributes"]["description"]
    with pytest.raises(StoreError, match="not a trainhooks store"):
        open_store(out)
    with pytest.raises(StoreError, match="there already"):
        copy_with_pcodec(path, out=out)


def test_an_interrupted_copy_leaves_nothing(slow_run, monkeypatch):
    pytest.importorskip("pcodec")
    path, _ = slow_run
    monkeypatch.setattr("trainhooks.store.maintenance.compact._copy_snapshots", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        copy_with_pcodec(path, out=path.with_name("copy.zarr"))
    assert [entry.name for entry in path.parent.iterdir()] == ["run.zarr"]


def test_pcodec_is_named_where_it_is_missing(slow_run, monkeypatch):
    path, _ = slow_run
    monkeypatch.setitem(sys.modules, "numcodecs.zarr3", None)
    with pytest.raises(ImportError, match=r"trainhooks\[pcodec\]"):
        copy_with_pcodec(path, out=path.with_name("copy.zarr"))


def test_the_command(slow_run, capsys):
    path, matrices = slow_run
    with pytest.raises(SystemExit) as stop:
        app(["compact", str(path), "--profile", "archive"])
    assert stop.value.code == 0
    assert "3 shards written anew, 0 left as they were" in capsys.readouterr().out
    check(path, matrices)
    with pytest.raises(SystemExit) as stop:
        app(["compact", str(path), "--codec", "pcodec"])
    assert stop.value.code == 1
    assert "needs --out" in capsys.readouterr().err
