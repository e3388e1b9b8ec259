"""The examples in docstrings are true: they are run, and leave no file behind."""

import doctest
import importlib
import inspect
import os

import printed
import pytest

import trainhooks as th

PACKAGE = printed.ROOT / "trainhooks"
# public names whose docstrings have an example; more are welcome, and none goes
SHOWN = {
    "Budget",
    "Every",
    "EveryStep",
    "LogSpaced",
    "MemorySink",
    "Schedule",
    "Steps",
    "TokenCounts",
    "Variable",
    "default_metrics",
    "find_output_embedding",
    "fit_probe",
}


def modules():
    """The modules that hold examples, told by their text: others are not imported."""
    files = [path for path in sorted(PACKAGE.rglob("*.py")) if ">>> " in path.read_text(encoding="utf-8")]
    return [".".join(path.relative_to(printed.ROOT).with_suffix("").parts) for path in files]


@pytest.mark.parametrize("name", modules())
def test_examples_are_true(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    examples = [test for test in doctest.DocTestFinder().find(module) if test.examples]
    assert examples, f"{name}: no example stands in a docstring"
    runner, said = doctest.DocTestRunner(), []
    for test in examples:
        runner.run(test, out=said.append)
    assert runner.failures == 0, "".join(said)
    assert os.listdir(tmp_path) == []


def test_public_names_keep_their_examples():
    having = {name for name in th.__all__ if ">>> " in (inspect.getdoc(getattr(th, name)) or "")}
    assert having >= SHOWN, f"without an example: {sorted(SHOWN - having)}"
