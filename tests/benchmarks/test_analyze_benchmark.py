"""The benchmark runs, and says what it is asked for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_it_runs_at_a_small_size():
    pytest.importorskip("transformers")
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("memory is measured on Linux only")
    sizes = ["--vocab", "4000", "--dim", "64", "--checkpoints", "3", "--repeats", "1", "--no-model"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "analyze.py"), *sizes],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    )
    found = json.loads(done.stdout[done.stdout.index("{") :])
    assert {"probe_ratio", "metrics_ratio"} <= set(found)
    assert all(value > 0 for name, value in found.items() if name.endswith(("seconds", "ratio")))
    assert found["peak_copies"] > 1  # the matrix itself is mapped
