"""What is printed cannot drive a terminal, and all that is printed goes one way."""

import ast
import csv
import io
import json
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from trainhooks.cli import app
from trainhooks.core.printable import cell, page, plain_console, say, shown, shown_lines
from trainhooks.core.variable import Variable
from trainhooks.store import Layout, StoreWriter

ROOT = Path(__file__).parents[2] / "trainhooks"
ROUGH = "\x1b]0;title\x07\x1b[2J\x9b31m\u202egnp.exe\u2066\u200b\x08\r\nerror: forged [bold]b[/bold] [/x] :smile:"
FORBIDDEN = [*map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0)), *"\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068"]
FORBIDDEN.remove("\n")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("plain text, ~", "plain text, ~"),
        ("gro\u00df, \u65e5\u672c, \U0001f600", "gro\u00df, \u65e5\u672c, \U0001f600"),
        ("\x1b[31m", "\\x1b[31m"),
        ("a\nb\r\t", "a\\nb\\x0d\\x09"),
        ("\x9b\x7f\xad", "\\x9b\\x7f\\xad"),
        ("\u202e\u2066\u200b\u2028\ufeff", "\\u202e\\u2066\\u200b\\u2028\\ufeff"),
        ("\udcff", "\\udcff"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_is_not_seen_is_spelled(text, wanted):
    assert shown(text) == wanted
    assert str(cell(text)) == wanted


def test_reports_keep_their_own_line_ends_only():
    assert shown_lines("a\nb\x07") == "a\nb\\x07"
    assert page(["a\nb", 3]) == "a\\nb\n3\n"


def test_markup_and_emoji_codes_are_text():
    out = plain_console(file=io.StringIO(), width=80)
    out.print("[bold]x[/y] :smile:")
    assert out.file.getvalue() == "[bold]x[/y] :smile:\n"


def test_a_terminal_of_another_encoding_is_no_error(monkeypatch):
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", ascii_only)
    say("\u65e5\u00df")
    ascii_only.flush()
    assert ascii_only.buffer.getvalue() == b"\\u65e5\\xdf\n"


def test_nothing_prints_by_another_way():
    for path in ROOT.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if path.name != "printable.py":
            assert not {"print", "Console", "rprint"} & called_in(tree), path


def called_in(tree):
    """The names of all that is called: functions, methods, and writers of the two streams."""
    functions = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = {getattr(one, "id", getattr(one, "attr", "")) for one in functions}
    streams = {"sys.stdout.write", "sys.stderr.write", "sys.stdout.buffer.write"}
    return names | ({"print"} if streams & {ast.unparse(one) for one in functions} else set())


@pytest.mark.parametrize(
    "text", ["print(1)", "console.print(1)", "rich.print(1)", "sys.stderr.write(x)", "a.b.print()"]
)
def test_each_way_to_print_is_caught(text):
    assert "print" in called_in(ast.parse(text))


@pytest.fixture(scope="module")
def rough(tmp_path_factory):
    """A store, a suite, counts and a corpus whose every name and text is rough."""
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("rough")
    layout = Layout(
        vocab=48,
        dim=8,
        groups=("a" + ROUGH,),
        sketch_size=4,
        block=8,
        variables=(
            Variable("loss", unit="m/[/s]" + ROUGH),
            Variable("x", dims=("k" + ROUGH,), sizes={"k" + ROUGH: 2}, unit=ROUGH),
        ),
        attributes={"run" + ROUGH: "name" + ROUGH, "[/x]": 1, "tokenizer_hash": "h" + ROUGH},
        token_text=["t" + ROUGH] * 48,
        token_count=np.arange(1, 49),
    )
    writer = StoreWriter(str(folder / "s.zarr"), layout)
    start, change = np.random.default_rng(0).standard_normal((2, 48, 8)).astype(np.float32)
    for step in range(24):
        sketch = np.full((1, 4), step + 1, np.float32)
        writer.append(step, {"loss": 1 / (step + 1)}, snapshot=start + 0.1 * step * change, sketch=sketch)
    writer.close()
    (folder / "s.zarr" / ("x" + ROUGH.replace("/", ""))).write_text("")
    for step in range(3):
        (folder / "suite" / f"step{step}").mkdir(parents=True)
        tensors = {name + ROUGH: torch.ones(3, 3) for name in "wv"}
        save_file(tensors, folder / "suite" / f"step{step}" / "model.safetensors")
    counts = np.arange(1, 49)
    np.savez(folder / "counts.npz", counts=counts, rule="rule" + ROUGH, tokenizer_hash=ROUGH, corpus_hash=ROUGH)
    np.savez(folder / "named.npz", **{"c" + ROUGH.replace("/", ""): counts})
    with (folder / "lines.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("id", "count"), (ROUGH, "1")])
    whole = {"type": "WordLevel", "vocab": {"a": 0, "[UNK]": 1}, "unk_token": "[UNK]"}
    shutil.copytree(folder / "s.zarr", folder / ("c" + ROUGH.replace("/", "") + ".zarr"))
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": whole}))
    (folder / "text.jsonl").write_text(json.dumps({ROUGH: 1}))
    return folder


COMMANDS = {
    "inspect": ("inspect", "s.zarr"),
    "verify": ("verify", "s.zarr"),
    "probe": ("probe", "s.zarr", "--draws", "0"),
    "verdict": ("verdict", "s.zarr", "--draws", "19"),
    "audit": ("audit", "suite"),
    "audit of all": ("audit", "suite", "--params", "*"),
    "probe of a file": ("probe", "suite/step0/model.safetensors", "--counts", "counts.npz"),
    "analyze": ("analyze", "suite", "--counts", "counts.npz", "--out", "out.zarr", "--workers", "1"),
    "analyze a store": ("analyze", "s.zarr", "--counts", "counts.npz", "--out", "out2.zarr", "--workers", "1"),
    "describe": ("count", "--describe", "counts.npz", "--against", "counts.npz"),
    "describe as JSON": ("count", "--describe", "counts.npz", "--json"),
    "describe nothing": ("count", "--describe", "named.npz"),
    "describe lines": ("count", "--describe", "lines.csv"),
    "count JSON lines": ("count", "text.jsonl", "--out", "new.npz", "--tokenizer", "tokenizer.json"),
    "inspect as JSON": ("inspect", "s.zarr", "--json"),
    "a name given": ("inspect", "no" + ROUGH),
    "export": ("export", "s.zarr", "--step", "3", "--out", "new" + ROUGH.replace("/", "") + ".safetensors"),
    "export of no step": ("export", "s.zarr", "--step", "99", "--out", "none.npy"),
    "compact": ("compact", "c" + ROUGH.replace("/", "") + ".zarr"),
    "plan": ("plan", "--vocab", "8", "--dim", "4", "--steps", "2", "--precision", ROUGH),
    "plan with a schedule": ("plan", "--vocab", "8", "--dim", "4", "--steps", "2", "--schedule", "log" + ROUGH),
    "steer": ("steer", "model" + ROUGH, "--text", "text.jsonl"),
    "prune": ("prune", "suite/step0", "--text", "text" + ROUGH),
    "demo": ("demo", "--corpus", "text" + ROUGH, "--out", "demo" + ROUGH.replace("/", "")),
}


@pytest.fixture
def said(rough, monkeypatch, capsys):
    """What a command prints, both streams."""

    def run(*arguments):
        monkeypatch.chdir(rough)
        with pytest.raises(SystemExit):
            app(list(arguments))
        return "".join(capsys.readouterr())

    return run


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_lets_a_file_drive_the_terminal(said, name):
    text = said(*COMMANDS[name])
    assert text
    assert not [one for one in FORBIDDEN if one in text], text
    assert "Traceback" not in text
    assert not [line for line in text.splitlines() if line.startswith("error: forged")], text


def test_inspect_shows_the_markup_that_it_does_not_follow(said):
    assert "[/x]" in said("inspect", "s.zarr")


def test_a_bug_keeps_its_traceback_spelled(said, monkeypatch):
    def fail(path):
        raise KeyError(ROUGH + "\x1b")

    monkeypatch.setattr("trainhooks.store.open_store", fail)
    for options, words in (((), "a bug: KeyError"), (("--debug",), "Traceback")):
        text = said("inspect", "s.zarr", *options)
        assert words in text
        assert not [one for one in FORBIDDEN if one in text]


@pytest.mark.filterwarnings("default")
def test_warnings_are_spelled(said, monkeypatch):
    def warn(path):
        warnings.warn(ROUGH, stacklevel=1)
        raise ValueError("the end")

    monkeypatch.setattr("trainhooks.store.open_store", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda *about: sys.stderr.write(warnings.formatwarning(*about[:4]))
        text = said("inspect", "s.zarr")
    assert "\\x1b]0;title" in text
    assert not [one for one in FORBIDDEN if one in text]


def test_tags_of_tensorboard_are_spelled(tmp_path):
    from trainhooks.sinks import Record
    from trainhooks.sinks.tensorboard import TensorBoardSink

    tags = []

    class Writer:
        log_dir = str(tmp_path)

        def add_scalar(self, tag, *_):
            tags.append(tag)

    sink = TensorBoardSink(writer=Writer())
    sink.write(Record(0, {"norm": np.ones(1)}, labels={"norm": ("layer\x1b[2J",)}))
    assert tags == ["trainhooks/norm/layer\\x1b[2J"]
