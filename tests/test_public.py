"""What users write and read by name: the package's names, the commands and their options, the store's variables.

What is taken away or renamed here breaks somebody. What is added is written into the list by
`python tests/test_public.py`.
"""

import importlib
import inspect
import json
from pathlib import Path

import numpy as np

import trainhooks as th
from trainhooks.cli import app

LISTED = Path(__file__).with_name("public.json")


def commands() -> dict[str, list[str]]:
    found = {}
    for name in sorted(app):
        if not name.startswith("-"):
            arguments = app[name].assemble_argument_collection()
            found[name] = sorted(option for argument in arguments for option in argument.names if option != "*")
    return found


def variables() -> dict[str, list[str]]:
    """By metric, the variables of one made with settings as they are: with the dimensions and the dtype."""
    counts = np.arange(1, 33)
    made = {"defaults": th.default_metrics(counts)} | {
        name: [metric] for name, metric in (("lead", th.LeadParts(counts)), ("exact", th.ExactConvergence(("*",))))
    }
    record = importlib.import_module("trainhooks.metrics.record_info").RECORD_VARIABLES
    own = {name: [v for metric in metrics for v in metric.variables] for name, metrics in made.items()}
    return {
        name: sorted(f"{v.name} [{', '.join(v.dims)}] {v.dtype}" for v in declared)
        for name, declared in {**own, "record": record}.items()
    }


def public() -> dict[str, object]:
    return {
        "trainhooks": sorted(th.__all__),
        "trainhooks.corpora": sorted(importlib.import_module("trainhooks.corpora").__all__),
        "commands": commands(),
        "variables": variables(),
        "recorder": sorted(inspect.signature(th.Recorder.__init__).parameters),
    }


def test_the_public_names_are_those_listed():
    made, listed = public(), json.loads(LISTED.read_text(encoding="utf-8"))
    for what, names in listed.items():
        assert made[what] == names, what


def test_the_package_shows_its_public_names_only():
    assert dir(th) == sorted(th.__all__)


def test_methods_of_before_are_reached_by_their_names():
    store = importlib.import_module("trainhooks.store")
    assert store.StoreWriter.abandon is store.StoreWriter.release
    assert store.BackgroundWriter.leave is store.BackgroundWriter.detach


if __name__ == "__main__":
    LISTED.write_text(json.dumps(public(), indent=1) + "\n", encoding="utf-8")
