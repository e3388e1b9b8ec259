"""The benchmark of the live path runs at a small setting: its own check is that no arm changed the losses by a bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_live_overhead(tmp_path):
    arms = ["scalars", "everything", "torch.save"]
    small = ["--small", "--threads", "1", "--steps", "10"]
    command = [sys.executable, str(ROOT / "benchmarks" / "live_overhead.py"), *small, "--only", *arms]
    run = subprocess.run(
        [*command, "--out", str(tmp_path / "table")],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads((tmp_path / "table.json").read_text())
    rows = {row["arm"]: row for row in found["rows"]}
    assert list(rows) == ["bare", *arms]
    assert all(row["ms"] > 0 and row["ratio"] > 0 for row in rows.values())
    assert rows["bare"]["ratio"] == 1
    assert rows["bare"]["bytes_per_step"] == 0 < rows["scalars"]["bytes_per_step"]
    assert rows["everything"]["bytes_per_step"] < rows["torch.save"]["bytes_per_step"]
    assert (tmp_path / "table.md").read_text().count("\n") > len(rows)
