"""Imports point one way: a module may import from layers below its own, and from its own package."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "trainhooks"

LAYERS = [
    {"core", "numerics"},
    {"store", "probe", "model"},
    {"metrics", "sinks", "corpora", "lead", "checkpoints"},
    {"recording", "analyze", "intervene", "probe_report"},
    {"integrations"},
    {"__init__"},
    {"demo"},
    {"cli"},
    {"__main__"},
]
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


def level(module: str) -> int:
    """The layer of a dotted module name inside the package; the longest entry that fits decides."""
    fits = [
        (len(entry), number)
        for number, layer in enumerate(LAYERS)
        for entry in layer
        if module == entry or module.startswith(entry + ".")
    ]
    assert fits, f"{module} is in no layer: add it to the table"
    return max(fits)[1]


def modules() -> list[tuple[str, Path]]:
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found.append((".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts), path))
    return found


def imported(path: Path) -> set[str]:
    """Modules of this package that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} imports relatively: name the module whole"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("trainhooks.") for name in names if name.startswith("trainhooks.")}


@pytest.mark.parametrize(("module", "path"), modules(), ids=[name for name, _ in modules()])
def test_imports_point_down(module, path):
    for target in imported(path):
        package = module.split(".")[0]
        if target.split(".")[0] == package:
            continue
        assert level(target) < level(module), f"{module} imports {target}, which is not below it"


def test_store_and_analysis_are_free_of_torch():
    for folder in ("store", "lead"):
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
