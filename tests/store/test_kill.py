"""Runs that are killed at random moments: what was reported durable is there, bit for bit, and the run goes on."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kill.py"
sys.path.insert(0, str(SCRIPT.parent))

from kill import check, layout, matrix, run_once  # noqa: E402

from trainhooks.store import StoreWriter, open_store  # noqa: E402


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_killed_runs_keep_what_was_durable(tmp_path, name):
    rng = random.Random(name)
    for seconds in (rng.uniform(0.0, 0.4), 0.3, rng.uniform(0.0, 0.4), rng.uniform(0.0, 0.4), 0.5):
        durable = run_once(tmp_path / "s.zarr", seconds=seconds, number=getattr(signal, name))
        check(tmp_path / "s.zarr", durable=durable)
    assert durable is not None
    assert durable >= 4


def test_an_exception_in_the_loop_leaves_everything_durable(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import kill; kill.fail({str(tmp_path / 's')!r}, 7)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "ZeroDivisionError" in done.stderr
    assert open_store(tmp_path / "s").steps.tolist() == list(range(7))


def test_a_killed_holder_does_not_block_the_next(tmp_path):
    run_once(tmp_path / "s.zarr", seconds=0.5, number=signal.SIGKILL)
    begun = time.monotonic()
    writer = StoreWriter(tmp_path / "s.zarr", layout(), mode="resume")
    assert time.monotonic() - begun < 10
    step = -1 if writer.last_step is None else writer.last_step
    writer.append(step + 1, {}, snapshot=matrix(step + 1))
    writer.close()
    np.testing.assert_array_equal(open_store(tmp_path / "s.zarr").output_embedding(step + 1), matrix(step + 1))
