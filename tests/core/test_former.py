"""Import paths of before still lead to what they led to, and say where it is now."""

import importlib
import subprocess
import sys
import warnings

import pytest

from trainhooks.core import former
from trainhooks.core.former_names import TABLE

NAMES = former.read_table(TABLE, package="trainhooks")


def test_every_former_module_is_found_and_says_its_place():
    for old, former_module in NAMES.items():
        sys.modules.pop(old, None)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            module = importlib.import_module(old)
        sys.modules.pop(old)
        parent, _, child = old.rpartition(".")
        vars(sys.modules.get(parent, module)).pop(child, None)  # importing binds it there
        assert f"{old} is {former_module.homes[0]} now" in str(said[-1].message)
        assert said[-1].category is DeprecationWarning
        homes = [vars(importlib.import_module(home)) for home in former_module.homes]
        for name, now in former_module.now.items():
            assert any(getattr(module, name) is home.get(now) for home in homes), f"{old}.{name}"


def test_a_former_name_hides_no_module_of_today():
    assert not [home for former_module in NAMES.values() for home in former_module.homes if home in NAMES]


def test_documented_paths_of_the_first_layout():
    code = """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)
from trainhooks.audit import audit_suite
from trainhooks.convergence import onset, place, random_walk
from trainhooks.runs import analyze_store
from trainhooks.suites import *
from trainhooks.tokens import TokenCounts
from trainhooks.recorder import Recorder
from trainhooks.report.source import report_matrix
from trainhooks.store.writing import Writing
from trainhooks.verdict import verdict
import trainhooks as th
assert th.Recorder is Recorder and th.TokenCounts is TokenCounts and th.Writing is Writing
assert callable(th.verdict)
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_what_is_set_under_a_former_name_is_set_where_it_is_now():
    sys.modules.pop("trainhooks.store.place", None)
    with pytest.warns(DeprecationWarning, match=r"store\.storage\.base now"):
        module = importlib.import_module("trainhooks.store.place")
    local = importlib.import_module("trainhooks.store.storage.local")
    plain = local.sync_folder
    try:
        module.sync_folder = "another"
        assert local.sync_folder == "another", "it is in the second of the homes"
    finally:
        local.sync_folder = plain
    with pytest.raises(AttributeError, match="has no 'nothing_of_the_kind'"):
        module.nothing_of_the_kind = 1


def test_a_name_that_never_was_is_refused():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("trainhooks.nothing_of_the_kind")
    sys.modules.pop("trainhooks.tokens", None)
    with pytest.warns(DeprecationWarning, match="core.token_counts now"):
        module = importlib.import_module("trainhooks.tokens")
    with pytest.raises(AttributeError, match="token_counts"):
        module.nothing_of_the_kind  # noqa: B018 - the lookup is what is tested


def test_the_warning_points_at_the_import(tmp_path):
    script = tmp_path / "old.py"
    script.write_text("\n\nimport trainhooks.tokens\n")
    done = subprocess.run([sys.executable, "-W", "default", str(script)], capture_output=True, text=True, check=True)
    assert "old.py:3: DeprecationWarning" in done.stderr
