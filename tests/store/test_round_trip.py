"""What goes in comes out: through our reader, through zarr and xarray alone, at every stage of folding."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray
import zarr

from trainhooks.store import Layout, StoreWriter, open_store, round_mantissa
from trainhooks.store.format.schema import INNER_ROWS


def check_against_run(store, run, steps):
    """Everything the reader says, against what the run says record by record."""
    assert store.steps.dtype == np.int64
    assert store.steps.tolist() == steps
    snapshot_steps = [step for step in steps if run.has_snapshot(step)]
    assert store.snapshot_steps.tolist() == snapshot_steps
    for variable in run.layout.variables:
        if variable.whole_run:
            continue
        missing = np.nan if variable.dtype.startswith("float") else -1
        rows = [run.values(step).get(variable.name, missing) for step in steps]
        shape = run.layout.row_shape(variable)
        wanted = np.array([np.broadcast_to(row, shape) for row in rows]).reshape(len(steps), *shape)
        got = store[variable.name]
        assert got.dtype == variable.dtype
        np.testing.assert_array_equal(got, wanted, err_msg=variable.name)
    sketches = np.array([run.sketch(step) for step in steps], dtype=np.float32)
    np.testing.assert_array_equal(store.sketch, sketches.reshape(store.sketch.shape))
    matrices = [round_mantissa(run.matrix(s), kept_bits=run.layout.kept_bits) for s in snapshot_steps]
    for step, matrix in [*zip(snapshot_steps, matrices, strict=True)][:: max(1, len(matrices) - 1)]:
        np.testing.assert_array_equal(store.output_embedding(step), matrix)
        np.testing.assert_array_equal(store.label_counts(step), run.counts(step))
    assert len(store.snapshots) == len(matrices)
    for got, matrix in zip(store.snapshots, matrices, strict=True):
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, matrix)
    for token in (0, INNER_ROWS, run.layout.vocab - 1):
        path = store.token_path(token)
        assert path.shape == (len(matrices), run.layout.dim)
        np.testing.assert_array_equal(path, [matrix[token] for matrix in matrices] or path)


@pytest.mark.parametrize("close", [True, False])
@pytest.mark.parametrize("records", [0, 1, 7, 8, 9, 17])
def test_block_boundaries(run, write, records, close):
    run = replace(run, layout=replace(run.layout, block=8))
    path = write(run, records=records, close=close)
    store = open_store(path)
    check_against_run(store, run, list(range(records)))
    assert store.complete == close
    # behind the reader's back: what zarr alone sees is whole blocks, and everything after close
    folded = records if close else records // 8 * 8
    assert zarr.open_array(path, path="step", mode="r").shape == (folded,)
    assert zarr.open_array(path, path="output_embedding", mode="r").shape == (folded, 70, 3)
    journal = path / ".journal"
    assert len(list(journal.iterdir()) if journal.exists() else []) == records - folded


@pytest.mark.parametrize("close", [True, False])
@pytest.mark.parametrize("records", [4, 12, 27])
def test_snapshots_rarer_than_records(sparse_run, write, records, close):
    path = write(sparse_run, records=records, close=close)
    check_against_run(open_store(path), sparse_run, list(range(records)))
    journal = path / ".journal"
    assert len(list(journal.iterdir()) if journal.exists() else []) <= 2 * sparse_run.layout.block


def test_matrices_rounded_before_they_come(run, tmp_path):
    layout = replace(run.layout, precision="bfloat16", block=4)
    writer = StoreWriter(tmp_path / "s", layout)
    for step in range(6):
        bits = torch.from_numpy(run.matrix(step)).to(torch.bfloat16).view(torch.uint16).numpy()
        writer.append(step, {}, snapshot=bits)
    writer.close()
    store = open_store(tmp_path / "s")
    for step in range(6):
        np.testing.assert_array_equal(store.output_embedding(step), round_mantissa(run.matrix(step), kept_bits=7))
    other = StoreWriter(tmp_path / "f", replace(layout, precision=6))
    with pytest.raises(ValueError, match="precision 6 needs float32"):
        other.append(0, {}, snapshot=bits)
    other.close()


@pytest.mark.parametrize("precision", ["float32", "bfloat16", 10, 1])
def test_precisions(run, write, precision):
    run = replace(run, layout=replace(run.layout, precision=precision, block=4))
    store = open_store(write(run, records=6, close=False))
    check_against_run(store, run, list(range(6)))
    assert store.precision == precision
    attributes = zarr.open_array(store.path, path="output_embedding", mode="r").attrs
    kept = run.layout.kept_bits
    assert attributes["mantissa_bits"] == kept
    assert attributes["relative_error_bound"] == (0 if kept == 23 else 2.0 ** -(kept + 1))


@pytest.mark.parametrize("close", [True, False])
def test_non_finite_and_tiny_weights_survive(tmp_path, close):
    matrix = np.array([[0x7F800001, 0xFFFFFFFF, 0x7F800000, 0xFF800000, 0x80000000, 0x00000001]], np.uint32)
    layout = Layout(vocab=1, dim=6, groups=(), sketch_size=0, precision="bfloat16")
    writer = StoreWriter(tmp_path / "s.zarr", layout)
    writer.append(0, {}, snapshot=matrix.view(np.float32))
    if close:
        writer.close()
    got = open_store(writer.path).output_embedding(0)
    np.testing.assert_array_equal(got, [[np.nan, np.nan, np.inf, -np.inf, -0.0, 0.0]])
    assert np.signbit(got[0, 4])


def test_a_store_without_snapshots_and_groups(tmp_path, layout):
    numbers = replace(layout, snapshots=False, groups=(), sketch_size=0, variables=layout.variables[:1], block=4)
    writer = StoreWriter(tmp_path / "s.zarr", numbers)
    for step in range(6):
        writer.append(step, {"probe.heldout_spearman": step})
    store = open_store(writer.path)
    np.testing.assert_array_equal(store["probe.heldout_spearman"], np.arange(6.0))
    assert len(store.snapshots) == 0
    assert store.snapshot_steps.shape == (0,)
    assert store.token_path(0).shape == (0, 3)
    assert list(store.metrics().sizes.items()) == [("step", 6), ("group", 0)]
    writer.close()
    assert {child.name for child in writer.path.iterdir() if child.is_dir()} == {
        "step",
        "probe.heldout_spearman",
        "token_count",
        "token_text",
    }


def test_steps_need_not_be_consecutive(run, tmp_path):
    steps = [0, 1, 2, 4, 512, 1000, 143000]
    writer = StoreWriter(tmp_path / "s.zarr", replace(run.layout, block=3))
    run.append(writer, steps)
    check_against_run(open_store(writer.path), run, steps)
    assert writer.last_step == 143000


@pytest.mark.parametrize("records", [0, 33])
def test_xarray_opens_it_without_this_package(run, write, records):
    dataset = xarray.open_zarr(write(run, records=records), chunks=None)
    assert dict(dataset.sizes) == {
        "step": records,
        "snapshot_step": records,
        "token": 70,
        "dim": 3,
        "group": 2,
        "sketch_bucket": 5,
        "rank": 2,
    }
    assert dataset["probe.heldout_spearman"].dims == ("step",)
    assert dataset["convergence.norm"].dims == ("step", "group")
    assert dataset["sketch"].dims == ("step", "group", "sketch_bucket")
    assert dataset["output_embedding"].dims == ("snapshot_step", "token", "dim")
    assert dataset["label_counts"].dims == ("snapshot_step", "token")
    assert dataset["token_count"].dims == dataset["token_text"].dims == ("token",)
    assert dataset["step"].values.tolist() == list(range(records))
    assert dataset["group"].values.tolist() == ["embedding", "block.0"]
    assert dataset["token_text"].values.tolist() == list(run.layout.token_text)
    assert dataset.attrs["trainhooks"]["provenance"] == {"seed": 3, "model": {"layers": 2}}
    if records:
        np.testing.assert_array_equal(dataset["output_embedding"].sel(snapshot_step=32), run.matrix(32))
        chosen = dataset["convergence.norm"].sel(step=7, group="block.0")
        assert float(chosen) == -7


def test_xarray_sees_whole_blocks_of_a_run_under_way(run, write):
    dataset = xarray.open_zarr(write(run, records=40, close=False), chunks=None)
    assert dataset.sizes["step"] == dataset.sizes["snapshot_step"] == 32
    np.testing.assert_array_equal(dataset["output_embedding"][31], run.matrix(31))


def test_codecs_on_disk(run, write):
    path = write(run, records=1)
    metadata = json.loads((path / "output_embedding" / "zarr.json").read_text())
    assert metadata["chunk_grid"]["configuration"]["chunk_shape"] == [32, 128, 3]
    (sharding,) = metadata["codecs"]
    assert sharding["name"] == "sharding_indexed"
    assert sharding["configuration"]["chunk_shape"] == [32, 64, 3]
    inner = sharding["configuration"]["codecs"]
    assert [codec["name"] for codec in inner] == ["transpose", "bytes", "blosc", "crc32c"]
    assert inner[0]["configuration"]["order"] == [1, 2, 0]
    blosc = inner[2]["configuration"]
    assert (blosc["cname"], blosc["clevel"], blosc["shuffle"], blosc["typesize"]) == (
        "zstd",
        1,
        "bitshuffle",
        4,
    )
    assert metadata["fill_value"] == "NaN"
    root = json.loads((path / "zarr.json").read_text())
    names = {child.name for child in path.iterdir() if child.is_dir()}
    assert set(root["consolidated_metadata"]["metadata"]) == names
    for name in names:
        on_disk = json.loads((path / name / "zarr.json").read_text())
        assert root["consolidated_metadata"]["metadata"][name] == on_disk


def test_finish_writes_the_whole_run_variables(run, tmp_path):
    writer = StoreWriter(tmp_path / "s.zarr", replace(run.layout, block=4))
    run.append(writer, range(6))
    name = "convergence.cosine_to_final"
    assert np.isnan(open_store(writer.path)[name]).all()
    wanted = np.arange(12.0).reshape(6, 2)
    writer.finish({name: wanted})
    np.testing.assert_array_equal(open_store(writer.path)[name], wanted)
    with pytest.raises(ValueError, match="has ended"):
        writer.append(6, {})
    writer.close()
    np.testing.assert_array_equal(zarr.open_array(writer.path, path=name, mode="r")[:], wanted)


def test_close_again_does_nothing(run, tmp_path):
    writer = StoreWriter(tmp_path / "s.zarr", run.layout)
    run.append(writer, range(2))
    writer.close()
    before = (writer.path / "zarr.json").stat().st_mtime_ns
    writer.close()
    assert (writer.path / "zarr.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="has ended"):
        writer.append(2, {})
    with pytest.raises(ValueError, match="before close"):
        writer.finish({})


def test_few_files_for_many_records(tmp_path, layout):
    numbers = replace(layout, snapshots=False, sketch_size=0, block=32)
    writer = StoreWriter(tmp_path / "s.zarr", numbers)
    for step in range(100):
        writer.append(step, {"probe.heldout_spearman": step})
    writer.close()
    assert len([file for file in writer.path.rglob("*") if file.is_file()]) < 30
    assert zarr.open_array(writer.path, path="probe.heldout_spearman", mode="r").chunks == (1024,)


def test_bytes_written_is_what_was_given_to_the_disk(run, tmp_path):
    writer = StoreWriter(tmp_path / "s.zarr", run.layout)
    run.append(writer, range(31))
    journal = sum(file.stat().st_size for file in (writer.path / ".journal").iterdir())
    assert writer.bytes_written > journal
    before = writer.bytes_written
    run.append(writer, [31])
    shard = (writer.path / "output_embedding" / "c" / "0" / "0" / "0").stat().st_size
    assert writer.bytes_written - before > shard
    writer.close()
