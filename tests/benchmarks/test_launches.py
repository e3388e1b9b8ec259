"""How many kernels a default record would launch on a GPU, and what it moves: counted on the fake device."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAUNCHES = {  # by width and layers, at most; what was to be reached is 400 with 12 layers and 450 with 48
    64: {12: 235, 48: 250},
    768: {12: 335},
}
SNAPSHOT_AND_PROBE = 140  # to be reached: 150
VOCAB = 50304


@pytest.mark.parametrize("width", LAUNCHES)
def test_launches_of_a_record(width):
    bounds, head = LAUNCHES[width], 4 * VOCAB * width
    command = [sys.executable, str(ROOT / "benchmarks" / "launches.py"), "--width", str(width)]
    run = subprocess.run(
        [*command, "--layers", *map(str, bounds)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    records = {record["layers"]: record for record in json.loads(run.stdout)}
    for layers, bound in bounds.items():
        record = records[layers]
        launches = record["launches"]
        assert record["parameters"] == 12 * layers + 4
        assert set(launches) == {"snapshot", "sketches", "probe", "spectrum", "geometry", "convergence"}
        assert launches["snapshot"] + launches["probe"] <= SNAPSHOT_AND_PROBE, record
        assert sum(launches.values()) == record["total"] <= bound, record
        assert set(record["bytes"]) == {"snapshot"}, "what is compared with stays on the device"
        assert head <= record["bytes"]["snapshot"] < 1.1 * head, record
