"""The recipe that measures the paper's claims runs from text to page, and goes on where it stopped."""

import argparse
import inspect
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("matplotlib")

RECIPE = Path(__file__).parents[2] / "recipes" / "reproduce"
TEXT = [argparse.__file__, inspect.__file__, tarfile.__file__]


def run(out):
    paths = os.pathsep.join([str(RECIPE.parents[1]), *sys.path])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["XDG_CACHE_HOME"] = str(out / "cache")
    arguments = ("--quick", "--english", *TEXT, "--threads", 1, "--out", out, "--results", out / "evidence")
    command = [sys.executable, str(RECIPE), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    out = tmp_path_factory.mktemp("reproduce")
    said = run(out)
    assert said.count("trained in") == said.count("measured in") == 3
    return out


def test_each_cell_keeps_its_figures(grid):
    kept = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (grid / "evidence").glob("*.json")}
    cells = {name: found for name, found in kept.items() if not name.startswith("verdict-")}
    assert len(cells) == 3
    for found in cells.values():
        assert found["suite"]["difference"] < 1e-5  # offline equals live
        assert found["suite"]["variables"] > 10
        assert found["series"]["distance"]["output_embedding"][-1] == 0
        assert found["direction"]["cosine"][-1] == pytest.approx(1)
        assert found["rows"]["bins"]["100-999"]["way"][-1] == pytest.approx(1)
    (pair,) = (found for name, found in kept.items() if name.startswith("verdict-") and found["seeds"] == 2)
    assert pair["level"]
    text = next(found for name, found in cells.items() if name.startswith("english"))
    assert all(value is not None for value in text["seen_counts"]["other"])


def test_the_page_has_every_table_filled(grid):
    page = (grid / "evidence.md").read_text(encoding="utf-8")
    assert "${" not in page
    assert "nan" not in page.lower().replace("finance", "")
    assert page.count("|---|") >= 15


def test_a_second_run_trains_and_measures_nothing(grid):
    before = {path: path.stat().st_mtime_ns for path in (grid / "evidence").glob("english*.json")}
    said = run(grid)
    assert "trained in" not in said
    assert "measured in" not in said
    assert {path: path.stat().st_mtime_ns for path in before} == before
