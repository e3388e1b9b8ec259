"""The commands on stores: verify's exit codes, export, plan."""

import json
import random
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import trainhooks.cli.verify
from trainhooks.cli.base import app
from trainhooks.store import Layout, StoreWriter, open_store
from trainhooks.store.maintenance.planning import plan_store

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from flip import flip_byte


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        app([str(one) for one in arguments])
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


def test_verify_says_by_its_exit_code(write, sparse_run, capsys):
    path = write(sparse_run, records=6)
    code, out, _ = call(capsys, "verify", path)
    assert (code, "is whole" in out) == (0, True)
    flip_byte(path / "step" / "zarr.json", random.Random(0))
    code, out, _ = call(capsys, "verify", path, "--json")
    assert code == 2
    assert json.loads(out)["problems"][0]["file"] == "step/zarr.json"
    code, out, _ = call(capsys, "verify", path, "--repair")
    assert (code, "repaired: wrote step/zarr.json anew" in out) == (0, True)
    code, _, err = call(capsys, "verify", path / "nothing")
    assert (code, err.count("\n")) == (1, 1)


def test_export(write, run, tmp_path, capsys):
    path, out = write(run, records=2), tmp_path / "one.npy"
    code, _, _ = call(capsys, "export", path, "--step", 1, "--format", "npy", "--out", out)
    assert code == 0
    np.testing.assert_array_equal(np.load(out, allow_pickle=False), run.matrix(1))


def test_snapshot_of_a_store_that_is_written(run, tmp_path, capsys):
    writer, out = StoreWriter(tmp_path / "s.zarr", replace(run.layout, block=4)), tmp_path / "copy.zarr"
    code, said, _ = call(capsys, "snapshot", writer.path, "--out", out)
    assert (code, "0 records, no record yet" in said) == (0, True)
    run.append(writer, range(6))
    code, said, err = call(capsys, "snapshot", writer.path, "--out", out)
    assert (code, said, "there already" in err, err.count("\n")) == (1, "", True, 1)
    code, said, _ = call(capsys, "snapshot", writer.path, "--out", tmp_path / "later.zarr")
    assert (code, "later.zarr: 6 records, last step 5" in said) == (0, True)
    run.append(writer, range(6, 9))
    writer.close()
    code, said, _ = call(capsys, "verify", tmp_path / "later.zarr")
    assert (code, "is whole" in said, "last step 5" in said) == (0, True, True)
    store = open_store(tmp_path / "later.zarr")
    assert store.steps.tolist() == list(range(6))
    np.testing.assert_array_equal(store.output_embedding(5), run.matrix(5))


def test_snapshot_says_what_it_cannot_copy(write, sparse_run, tmp_path, capsys):
    for source in (tmp_path / "nothing", tmp_path):
        code, said, err = call(capsys, "snapshot", source, "--out", tmp_path / "copy")
        assert (code, said, err.startswith("error: "), err.count("\n")) == (1, "", True, 1)
    path = write(sparse_run, records=6)
    flip_byte(path / "step" / "c" / "0", random.Random(0))
    code, _, err = call(capsys, "snapshot", path, "--out", tmp_path / "copy")
    assert (code, "step/c/0 does not fit its checksum" in err, "trainhooks verify" in err) == (1, True, True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run.zarr"]


def test_plan_of_a_large_run(capsys):
    size = ("--vocab", 50304, "--dim", 768, "--steps", 9999, "--precision", "bfloat16", "--ms-per-step", 200)
    code, out, _ = call(capsys, "plan", *size, "--json")
    planned = json.loads(out)
    assert code == 0
    assert planned["snapshots"] == 10_000
    assert planned["files"] < 2000
    assert planned["estimated_bytes"] < planned["disk_bytes"] / 4
    assert planned["bytes_per_second"] > planned["estimated_bytes"] / 2000
    code, out, _ = call(capsys, "plan", *size[:6], "--schedule", "log")
    assert (code, "disk, at most" in out) == (0, True)
    code, _, err = call(capsys, "plan", *size[:6], "--schedule", "weekly")
    assert (code, "use every:N, log" in err) == (1, True)


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
@pytest.mark.parametrize("records", [11, 32, 45])
def test_what_the_plan_estimates_is_right_within_a_half(tmp_path, precision, records):
    """Of a head that moves by a percent a step, in full blocks and in the beginning of one."""
    layout = Layout(vocab=2048, dim=64, groups=(), sketch_size=0, precision=precision)
    draw = np.random.default_rng(0)
    head, path = 0.02 * draw.standard_normal((2048, 64), dtype=np.float32), tmp_path / "run.zarr"
    with closing(StoreWriter(path, layout)) as writer:
        for step in range(records):
            writer.append(step, {}, snapshot=head)
            head += 2e-4 * draw.standard_normal(head.shape, dtype=np.float32)
    taken = sum(file.stat().st_size for file in (path / "output_embedding").rglob("*"))
    planned = plan_store(layout, records=records, snapshots=records, total_steps=records)
    assert planned.estimated_bytes / 1.5 < taken < 1.5 * planned.estimated_bytes, taken / planned.estimated_bytes


@pytest.mark.parametrize("records", [3, 32, 40])
def test_the_plan_counts_the_files_that_a_store_has(tmp_path, records):
    layout = Layout(vocab=70, dim=3, groups=("a", "b"), sketch_size=4)
    writer = StoreWriter(tmp_path / "s", layout)
    for step in range(records):
        writer.append(step, {}, snapshot=np.zeros((70, 3), np.float32))
    writer.close()
    planned = plan_store(layout, records=records, snapshots=records, total_steps=records)
    assert planned.files == sum(1 for file in (tmp_path / "s").rglob("*") if file.is_file())
    assert planned.disk_bytes >= sum(file.stat().st_size for file in (tmp_path / "s").rglob("*") if file.is_file())
    assert planned.bytes_per_second is None
    with pytest.raises(ValueError, match="milliseconds a step"):
        plan_store(layout, records=1, snapshots=1, total_steps=1, milliseconds=0.0)


def test_schedules_by_name():
    parse = trainhooks.cli.plan.parse_schedule
    assert parse("every:5").steps(10) == [0, 5, 10]
    assert parse("log").steps(5) == [0, 1, 2, 4]
    assert parse("steps:1,3").steps(9) == [1, 3]
    with pytest.raises(ValueError, match="every:x"):
        parse("every:x")
