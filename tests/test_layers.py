"""Imports point one way, within packages too, as `pyproject.toml` says; and what is not imported at all."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from importlinter import api as linter

PROJECT = Path(__file__).parents[1]
ROOT = PROJECT / "trainhooks"
SETTINGS = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
LAYERS = SETTINGS["contracts"][0]["layers"]

HEAVY = (
    "lightning",
    "pytorch_lightning",
    "transformers",
    "tensorboard",
    "matplotlib",
    "sklearn",
    "pandas",
    "datasets",
    "pyarrow",
    "dask",
    "distributed",
    "huggingface_hub",
    "tokenizers",
)


def test_imports_point_down_and_in_no_circle(capsys):
    linter.read_configuration(str(PROJECT / "pyproject.toml"))
    kept = linter.use_cases.lint_imports(config_filename=str(PROJECT / "pyproject.toml"), cache_dir=None)
    assert kept, capsys.readouterr().out


def test_every_unit_at_the_top_is_in_one_layer():
    units = [unit for layer in LAYERS for unit in re.split(r"[ |]+", layer)]
    found = {p.name for p in ROOT.iterdir() if p.is_dir() and (p / "__init__.py").exists()}
    assert sorted(units) == sorted(found)
    assert {p.name for p in ROOT.iterdir() if p.is_file()} == {"__init__.py", "__main__.py", "py.typed"}


def test_the_design_page_shows_these_layers():
    page = (PROJECT / "docs" / "design.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z_`, ]+)` \|", page, flags=re.MULTILINE)
    assert [row.split("`, `") for row in rows] == [re.split(r"[ |]+", layer) for layer in LAYERS]


def test_no_module_is_imported_relatively():
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.ImportFrom) and node.level), path


def test_store_and_analysis_are_free_of_torch():
    for folder in ("store", "lead", "plots"):
        for path in (ROOT / folder).rglob("*.py"):
            assert path.name == "from_store.py" or "torch" not in {
                name.split(".")[0]
                for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                for name in (
                    [alias.name for alias in node.names]
                    if isinstance(node, ast.Import)
                    else [node.module or ""]
                    if isinstance(node, ast.ImportFrom)
                    else []
                )
            }, path


def loaded(statement: str, names: tuple[str, ...]) -> list[str]:
    """Which of some packages a statement imports, in a process of its own."""
    code = f"{statement}\nimport sys; print(*(m for m in {names!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_the_public_names_pull_in_nothing_optional():
    assert loaded("from trainhooks import *; from trainhooks.corpora import *", HEAVY) == []


def test_the_command_line_and_counting_start_without_what_is_slow_to_import():
    slow = ("torch", "zarr", "xarray", "scipy", *HEAVY)
    assert loaded("import trainhooks.cli, trainhooks.corpora.counting, trainhooks.corpora.sources", slow) == []


@pytest.mark.parametrize("package", ["trainhooks", "trainhooks.corpora"])
def test_lazy_names_are_those_that_type_checkers_see(package):
    module = import_module(package)
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    seen = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        for alias in node.names
    }
    assert sorted(seen) == sorted(set(module.__all__))
    for name, home in seen.items():
        assert getattr(module, name) is getattr(import_module(home), name)
        assert name in dir(module)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(module, "nothing")  # noqa: B009 - a type checker would refuse it


def test_nothing_imports_pythons_global_random_numbers():
    for path in ROOT.rglob("*.py"):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert not [line for line in lines if line.startswith(("import random", "from random"))], path


def test_only_capture_registers_hooks():
    for path in ROOT.rglob("*.py"):
        if path.name != "hooks.py":
            text = path.read_text(encoding="utf-8")
            assert "register_forward" not in text, path
            assert "register_full_backward" not in text, path
