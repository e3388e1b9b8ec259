from __future__ import annotations

import argparse
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from trainhooks.store import open_store

RECIPES = Path(__file__).parents[2] / "recipes"
LOOPS = ("pretrain_plain", "pretrain_lightning", "pretrain_transformers", "custom_metric")
SMALL = ["--steps", "2", "--batch", "2", "--accumulate", "2", "--context", "16", "--text", argparse.__file__]


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))  # one tokenizer for all
    monkeypatch.syspath_prepend(str(RECIPES))


@pytest.mark.parametrize("recipe", LOOPS)
@pytest.mark.filterwarnings(
    "ignore:The 'train_dataloader' does not have many workers",
    "ignore:.*`isinstance\\(treespec, LeafSpec\\)` is deprecated",
)
def test_recipe_runs(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [recipe, *SMALL, "--out", str(tmp_path)])
    runpy.run_path(str(RECIPES / f"{recipe}.py"), run_name="__main__")
    store = open_store(tmp_path / "run.zarr")
    assert store.complete
    assert store.steps.tolist() == [0, 1, 2]
    assert "->" in capsys.readouterr().out or recipe == "custom_metric"


def test_losses_may_be_scaled_by_labels(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["plain", *SMALL, "--loss-scaling", "labels", "--out", str(tmp_path)])
    runpy.run_path(str(RECIPES / "pretrain_plain.py"), run_name="__main__")
    assert open_store(tmp_path / "run.zarr").steps.tolist() == [0, 1, 2]


def test_two_processes_by_torchrun(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(RECIPES / "pretrain_fsdp.py"), *SMALL, "--out", str(tmp_path)]
    paths = os.pathsep.join([str(RECIPES.parent), *sys.path])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("->") == 2  # rank 0 alone reports
    store = open_store(tmp_path / "run.zarr")
    assert store.complete
    assert store.steps.tolist() == [0, 1, 2]
    assert store.label_counts(2).sum() == 2 * 2 * 2 * 16  # both ranks' shares


@pytest.mark.parametrize("recipe", [*LOOPS, "pretrain_fsdp"])
def test_docstring_is_the_command_that_runs_it(recipe):
    text = (RECIPES / f"{recipe}.py").read_text()
    assert f"python recipes/{recipe}.py" in text.split('"""')[1]
    assert len(text.splitlines()) <= 100
