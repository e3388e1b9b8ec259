"""The notebook runs from its first cell to its last, and each cell that ends in a value shows one."""

import ast
import json
from pathlib import Path

import pytest
from figure_runs import record

pytest.importorskip("matplotlib")

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebook.ipynb"


def executed(cell, names):
    """Run one cell; what its last expression gives, as a notebook shows it (None without one)."""
    tree = ast.parse(cell)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<cell>", "exec"), names)
    if last is None:
        return None
    value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)
    for way in ("_repr_png_", "_repr_html_"):
        if hasattr(type(value), way):
            return getattr(value, way)()
    return repr(value)


def test_the_notebook_goes_from_a_store_to_every_figure(tmp_path, monkeypatch):
    (tmp_path / "store" / "runs" / "demo").mkdir(parents=True)
    record(tmp_path / "store" / "runs" / "demo", steps=24)
    monkeypatch.chdir(tmp_path)
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] for cell in cells)
    names: dict = {}
    shown = [executed("".join(cell["source"]), names) for cell in cells]
    pictures = [one for one in shown if isinstance(one, bytes)]
    assert len(pictures) == 10
    assert all(one.startswith(b"\x89PNG") for one in pictures)
    assert all(shown)
    assert {"dynamics.pdf", "scatter.csv", "layers.txt"} <= {path.name for path in (tmp_path / "figures").iterdir()}
    assert (tmp_path / "report.html").stat().st_size > 1e6


def test_the_readmes_picture_is_small():
    picture = NOTEBOOK.parent / "images" / "overview.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size < 250_000
