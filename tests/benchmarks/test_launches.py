"""How many kernels a default record would launch on a GPU, and what it moves: counted on the fake device."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LAUNCHES = {12: 235, 48: 255}  # by layers, at most; what was to be reached is 400 and 450
SNAPSHOT_AND_PROBE = 140  # to be reached: 150
HEAD = 4 * 50304 * 64


def test_launches_of_a_record():
    run = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "launches.py"), "--layers", *map(str, LAUNCHES)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    records = {record["layers"]: record for record in json.loads(run.stdout)}
    for layers, bound in LAUNCHES.items():
        record = records[layers]
        launches = record["launches"]
        assert record["parameters"] == 12 * layers + 4
        assert set(launches) == {"snapshot", "sketches", "probe", "spectrum", "geometry", "convergence"}
        assert launches["snapshot"] + launches["probe"] <= SNAPSHOT_AND_PROBE, record
        assert sum(launches.values()) == record["total"] <= bound, record
        assert set(record["bytes"]) == {"snapshot"}, "what is compared with stays on the device"
        assert HEAD <= record["bytes"]["snapshot"] < 1.1 * HEAD, record
