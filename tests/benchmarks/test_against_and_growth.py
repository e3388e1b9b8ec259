"""The benchmarks that run two versions beside each other, and that draw how costs grow: in their smallest settings."""

import csv
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import against  # noqa: E402


def test_a_served_benchmark_measures_when_it_is_told_to():
    side = against.Served(BENCHMARKS / "probe.py", ["--vocab=300", "--dim=8", "--threads=1"], ROOT)
    first, second = side.round(0), side.round(1)
    side.close()
    assert first.keys() == second.keys() >= {"E'E", "live probe", "all live head metrics"}
    assert all(ms >= 0 for ms in first.values())


def test_rows_pair_the_rounds_of_both_versions():
    found = {against.NOW: [{"a": 1.0}, {"a": 2.0}, {"a": 9.0}], against.THEN: [{"a": 2.0}, {"a": 8.0}, {"a": 9.0}]}
    row = against._row("a", found, "abc1234")
    assert row == {"what": "a", "then": 8.0, "now": 2.0, "ratio": 0.5, "ref": "abc1234"}
    assert "| a | 8.00 | 2.00 | 0.500 |" in against.table([row], unit="ms")


def test_growth_is_measured_or_modelled_and_drawn(tmp_path):
    command = [sys.executable, BENCHMARKS / "growth.py", "--small", "--out", tmp_path, "--repeats=1"]
    subprocess.run([*map(str, command), "--most-records=40"], check=True, capture_output=True, cwd=ROOT)
    with (tmp_path / "growth.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["panel"] for row in rows} == {"vocabulary", "width", "parameters", "steps"}
    assert {row["x"] for row in rows if row["modelled"] == "1"} == {"64"}
    assert 10_000 < (tmp_path / "growth.png").stat().st_size < 200_000
