import inspect
import json
import subprocess
import sys

import pytest
from loops import COUNTS, TinyLM, batches, train

import trainhooks as th
from trainhooks.cli import app

COMMANDS = [name for name in app if not name.startswith("-")]


def run(*arguments):
    command = [sys.executable, "-c", "from trainhooks.cli import app; app()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "run.zarr"
    model = TinyLM()
    with th.Recorder(model, store=path, counts=COUNTS) as recorder:
        train(model, batches(12), recorder)
    return path


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_parameter_is_documented(name):
    function = app[name].default_command
    text = inspect.getdoc(function)
    assert text
    assert "Parameters\n----------" in text
    for parameter in inspect.signature(function).parameters:
        assert f"\n{parameter}\n    " in text, f"{name}: {parameter} is not documented"


def test_inspect_for_people_and_for_programs(store):
    text = run("inspect", store)
    assert text.returncode == 0, text.stderr
    assert "probe.heldout_spearman" in text.stdout
    summary = json.loads(run("inspect", store, "--json").stdout)
    assert summary["vocab"] == 60
    assert summary["records"] == 13


def test_verdict_for_people_and_for_programs(store):
    text = run("verdict", store, "--q", "0.3", "0.6", "--draws", "19")
    assert text.returncode == 0, text.stderr
    assert "lead" in text.stdout
    json.loads(run("verdict", store, "--q", "0.5", "--draws", "19", "--json").stdout)


@pytest.mark.parametrize(
    "arguments",
    [("inspect", "/nowhere/run.zarr"), ("verdict", "/nowhere/run.zarr"), ("demo", "--corpus", "/nowhere/text")],
)
def test_a_mistake_is_one_line(arguments):
    done = run(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
