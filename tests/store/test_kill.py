"""Runs that are killed at random moments: what was reported durable is there, bit for bit, and the run goes on."""

import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kill.py"
sys.path.insert(0, str(SCRIPT.parent))

from kill import Children, check, kill_one, layout, look, matrix  # noqa: E402

from trainhooks.store import StoreWriter, open_store  # noqa: E402


@pytest.fixture(scope="module")
def children():
    with Children() as children:
        yield children


def test_ten_kills_during_blocks_folds_compaction_and_commits_lose_nothing(tmp_path, children):
    rng = random.Random(3)
    records = check(tmp_path / "s.zarr", durable=children.kill("record", tmp_path / "s.zarr", seconds=0.0, after=3))
    for number in range(10):
        records = kill_one(children, tmp_path / "s.zarr", number, records=records, seconds=rng.uniform(0.0, 0.3))
        look(tmp_path / "s.zarr")
    assert records >= 4


def test_sigterm_loses_nothing(tmp_path, children):
    for after in (None, 4):
        durable = children.kill("record", tmp_path / "s.zarr", seconds=0.05, number=signal.SIGTERM, after=after)
        check(tmp_path / "s.zarr", durable=durable)
    assert durable >= 4


def test_an_exception_in_the_loop_leaves_everything_durable(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import kill; kill.fail({str(tmp_path / 's')!r}, 7)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)
    assert "ZeroDivisionError" in done.stderr
    assert open_store(tmp_path / "s").steps.tolist() == list(range(7))


def test_a_killed_holder_does_not_block_the_next(tmp_path, children, monkeypatch):
    children.kill("record", tmp_path / "s.zarr", seconds=0.0, after=1)
    monkeypatch.setattr("trainhooks.store.storage.lock.WATCH_SECONDS", float("nan"))  # sleep refuses it: nobody waits
    writer = StoreWriter(tmp_path / "s.zarr", layout(), mode="resume")
    step = -1 if writer.last_step is None else writer.last_step
    writer.append(step + 1, {}, snapshot=matrix(step + 1))
    writer.close()
    np.testing.assert_array_equal(open_store(tmp_path / "s.zarr").output_embedding(step + 1), matrix(step + 1))
