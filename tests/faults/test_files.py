"""Mutated stores and files: a result or an error of this package, never another; and what was found once."""

import json
import re
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from trainhooks.store import StoreError, StoreWriter, open_store
from trainhooks.store.maintenance.verify import verify

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from faults_files import TARGETS, fuzz
from faults_stores import LAYOUT, make, reseal_manifest, reseal_piece, seal, wrong_numbers


@pytest.mark.filterwarnings("ignore")  # a mutated file may be warned of
@pytest.mark.parametrize("target", TARGETS)
def test_mutations_end_in_a_result_or_an_own_error(tmp_path, target):
    outcomes, wrong = fuzz(target, 25, seed=1, folder=tmp_path)
    assert wrong == []
    assert sum(outcomes.values()) == 25


@pytest.mark.parametrize("chunk", ["step/c/0", "snapshot_step/c/0", "loss/c/0", "token_count/c/0", "sketch/c/0/0/0"])
@pytest.mark.parametrize("content", [b"", b"\0" * 40, b"x"])
def test_a_damaged_chunk_is_named(tmp_path, chunk, content):
    path = make(tmp_path / "run.zarr", close=True)
    (path / chunk).write_bytes(content)
    with pytest.raises(StoreError, match=f"{chunk} is damaged"):
        TARGETS["open"].use(path)


def test_numbers_that_are_refused_are_not_read(tmp_path):
    path = make(tmp_path / "run.zarr", close=True)
    (path / "loss/c/0").write_bytes(b"")
    store = open_store(path)
    assert store.steps.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(StoreError, match="loss/c/0"):
        _ = store["loss"]


def test_an_empty_shard_is_no_shard_of_missing_values(tmp_path):
    path = make(tmp_path / "run.zarr", close=True)
    (path / "output_embedding/c/0/0/0").write_bytes(b"")
    store = open_store(path)
    with pytest.raises(StoreError, match="output_embedding/c/0/0/0 is damaged: it is cut short"):
        store.token_path(3)


@pytest.mark.parametrize(
    ("name", "other", "problem"),
    [
        ("output_embedding", None, "it names the rows 0:6 of a matrix and has none"),
        ("output_embedding", {"shape": [3, 4]}, r"needed float32 \(6, 2\)"),
        ("output_embedding", {"shape": [], "data_offsets": [0, 48]}, r"needed float32 \(6, 2\)"),
        ("sketch", {"shape": [2, 1]}, r"needed float32 \(1, 2\)"),
        ("loss", {"dtype": "I64"}, r"'loss' is int64 \(\), needed float64 \(\)"),
    ],
)
@pytest.mark.parametrize("use", ["open", "repair", "resume"])
def test_a_record_that_does_not_fit_the_layout_is_refused(tmp_path, name, other, problem, use):
    path = make(tmp_path / "run.zarr", close=False)
    (file,) = (path / ".journal").iterdir()
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["x" if other is None else name] = header.pop(name) | (other or {})
    reseal_piece(file, header, content[8 + length :])
    (found,) = [one for one in verify(path).problems if "snapshot-" in one.key]
    assert re.search(problem, found.what)
    with pytest.raises(StoreError, match=problem):
        TARGETS[use].use(path)


def test_a_text_array_of_another_checksum_is_no_number(tmp_path):
    path = make(tmp_path / "run.zarr", close=False)
    root = json.loads((path / "zarr.json").read_bytes())
    manifest = path / root["attributes"]["trainhooks"]["manifest"]
    document = json.loads(manifest.read_bytes())
    document["files"]["group/c/0"][1] = "00000000"
    assert reseal_manifest(path, manifest, json.dumps(document).encode())
    assert any("group/c/0" in problem.key for problem in verify(path).problems)
    for use in ("open", "repair", "resume"):
        shutil.copytree(path, tmp_path / use)
        with suppress(StoreError):
            TARGETS[use].use(tmp_path / use)


@pytest.mark.parametrize("use", ["open", "verify", "repair", "resume", "compact"])
def test_an_array_may_go_without_attributes(tmp_path, use):
    path = make(tmp_path / "run.zarr", close=False)
    root = json.loads((path / "zarr.json").read_bytes())
    del root["consolidated_metadata"]["metadata"]["loss"]["attributes"]
    (path / "zarr.json").write_bytes(seal(root))
    with suppress(StoreError):  # some of them say that they cannot
        TARGETS[use].use(path)


def test_repair_says_that_a_store_is_no_longer_complete(tmp_path):
    path = make(tmp_path / "run.zarr", close=True)
    shard = path / "output_embedding/c/1/0/0"
    shard.write_bytes(shard.read_bytes() * 2)  # each inner chunk is whole, and the file is not the one that is listed
    done = TARGETS["repair"].use(path)
    assert any("is cut to 2 entries" in line for line in done)
    assert any("end read as missing until a run ends in it" in line for line in done)


def test_another_number_is_found(tmp_path):
    right = make(tmp_path / "right.zarr", close=True)
    assert wrong_numbers(right, right) == ""
    assert "loss is" in wrong_numbers(_with_other_losses(tmp_path / "wrong.zarr"), right)


def _with_other_losses(path):
    """A store whose losses were never these."""
    writer = StoreWriter(path, LAYOUT)
    for step in range(5):
        writer.append(step, {"loss": 7})
    writer.close()
    return path
