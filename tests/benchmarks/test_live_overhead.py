"""The benchmark of the live path runs at a small setting: its own check is that no arm changed the losses by a bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def measured(folder, arms, *options):
    small = ["--small", "--threads", "1", "--steps", "10", *options]
    command = [sys.executable, str(ROOT / "benchmarks" / "live_overhead.py"), *small, "--only", *arms]
    run = subprocess.run(
        [*command, "--out", str(folder / "table")],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads((folder / "table.json").read_text())
    return {row["arm"]: row for row in found["rows"]}


def test_the_recorder_alone(tmp_path):
    rows = measured(tmp_path, ["groups"], "--alone")
    assert list(rows) == ["bare", "groups"]
    assert rows["groups"]["bytes_per_step"] > 512 * 256 / 2, "matrices that move, as they are stored"
    assert rows["groups"]["recorder_ms"] > 0


def test_live_overhead(tmp_path):
    arms = ["scalars", "everything", "torch.save"]
    rows = measured(tmp_path, arms)
    assert list(rows) == ["bare", *arms]
    assert all(row["ms"] > 0 and row["ratio"] > 0 for row in rows.values())
    assert rows["bare"]["ratio"] == 1
    assert rows["bare"]["bytes_per_step"] == 0 < rows["scalars"]["bytes_per_step"]
    assert rows["everything"]["bytes_per_step"] < rows["torch.save"]["bytes_per_step"]
    assert (tmp_path / "table.md").read_text().count("\n") > len(rows)
