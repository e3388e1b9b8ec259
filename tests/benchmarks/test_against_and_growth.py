"""The benchmarks that run two versions beside each other, and that draw how costs grow: in their smallest settings."""

import argparse
import csv
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import against  # noqa: E402
import growth  # noqa: E402


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


def test_growth_is_measured_and_drawn(tmp_path):
    command = [sys.executable, BENCHMARKS / "growth.py", "--small", "--out", tmp_path, "--repeats=1"]
    (tmp_path / "growth.csv").write_text("panel,what,x,ms\nwidth,of before,7,1\nsteps,kept,100,2\n")
    panels = ["--panels", "vocabulary", "width", "parameters"]
    subprocess.run([*map(str, command), *panels], check=True, capture_output=True, cwd=ROOT)
    rows = table(tmp_path)
    assert {row["panel"] for row in rows} == {"vocabulary", "width", "parameters", "steps"}
    assert [row["what"] for row in rows if row["panel"] == "steps"] == ["kept"], "what was not asked for stays"
    assert {row["x"] for row in rows if row["panel"] == "width"} == {"16", "32"}
    assert 10_000 < (tmp_path / "growth.png").stat().st_size < 300_000


def test_sizes_that_are_too_large_are_left_out():
    limits = argparse.Namespace(repeats=1, most=1, most_records=40)
    found = [point for points in growth.measured(["width", "steps"], growth.SMALL, limits) for point in points]
    assert {(point.panel, point.x) for point in found} == {("steps", 32)}


def test_a_line_says_how_it_grows():
    cubes = [(x, 5.0 * x**3) for x in (10, 20, 40)]
    assert "~ d$^{3.0}$" in growth.named("work", [(1, 1e9), *cubes], size="d")
    assert "does not grow" in growth.named("work", [(x, 2.0) for x, _ in cubes], size="d")
    assert growth.named("work", [(1, 1.0)], size="d") == "work"


def table(folder):
    with (folder / "growth.csv").open(newline="") as file:
        return list(csv.DictReader(file))
