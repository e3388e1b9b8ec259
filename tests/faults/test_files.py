"""Mutated stores and files: a result or an error of this package, never another; and what was found once."""

import sys
from pathlib import Path

import pytest

from trainhooks.store import StoreError, open_store

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from faults_files import TARGETS, fuzz, make


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
