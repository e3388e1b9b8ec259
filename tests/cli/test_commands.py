"""Every command: documented to its last option, examples that can be read; mistakes are a line, calls have codes."""

import inspect
import json
import shlex
from dataclasses import is_dataclass

import pytest

from trainhooks.cli import app, base
from trainhooks.cli import progress as progress_module
from trainhooks.cli.base import examples
from trainhooks.cli.progress import working
from trainhooks.core.token_counts import TokenCounts

COMMANDS = [name for name in app if not name.startswith("-")]
FOR_PROGRAMS = {"demo", "export", "snapshot", "compact"}
"""What these make is a file: a script needs no figures of them."""


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        app([str(one) for one in arguments])
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


def options(name):
    """Every option of a command, and what its help says of it."""
    found = {}
    for argument in app[name].assemble_argument_collection(parse_docstring=True):
        if not is_dataclass(argument.hint):
            found[argument.name] = argument.parameter.help
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_is_documented(name):
    text = inspect.getdoc(app[name].default_command)
    assert text
    assert "Parameters\n----------" in text
    for option, told in options(name).items():
        assert told, f"{name}: {option} is not documented"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_examples_that_can_be_read(name, capsys):
    lines = examples(app[name].default_command)
    assert lines, f"{name}: the docstring has no section Examples"
    for line in lines:
        words = shlex.split(line)
        assert words[:2] == ["trainhooks", name], line
        app.parse_args(words[1:], exit_on_error=False, print_error=False)
    code, out, _ = call(capsys, name, "--help")
    assert code == 0
    assert all(part in " ".join(out.split()) for line in lines for part in line.split())


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - FOR_PROGRAMS))
def test_a_command_that_says_something_says_it_to_programs_too(name):
    assert "--json" in options(name) or any(option.startswith("--json") for option in options(name))


@pytest.mark.parametrize(
    "words",
    [
        ("nothing",),
        ("verify",),
        ("verify", "run.zarr", "--nothing"),
        ("plan", "--vocab", "many"),
        ("plan", "--vocab", 0),
    ],
)
def test_a_wrong_call_has_a_code_of_its_own(words, capsys):
    code, out, err = call(capsys, *words)
    assert (code, out, err.count("\n")) == (base.WRONG_CALL, "", 1)
    assert err.startswith("error: ")
    assert "--help" in err


def test_a_mistake_is_a_line_and_with_debug_a_traceback(tmp_path, capsys):
    code, out, err = call(capsys, "verify", tmp_path)
    assert (code, out, err.count("\n")) == (base.FAILED, "", 1)
    for words in (("--debug", "verify", tmp_path), ("verify", tmp_path, "--debug")):
        code, _, err = call(capsys, *words)
        assert code == base.FAILED
        assert err.startswith("Traceback")
        assert "StoreError: no store at" in err
    assert "Traceback" not in call(capsys, "verify", tmp_path)[2], "the next command is itself again"


def test_a_path_that_is_not_there_is_named(tmp_path, capsys):
    code, _, err = call(capsys, "count", "--describe", tmp_path / "counts.npz")
    assert (code, err.count("\n")) == (base.FAILED, 1)
    assert str(tmp_path / "counts.npz") in err


def test_a_bug_is_named_and_says_how_to_see_more(monkeypatch, capsys):
    def broken(path):
        raise KeyError("who")

    monkeypatch.setattr(TokenCounts, "load", broken)
    code, _, err = call(capsys, "count", "--describe", "counts.npz")
    assert (code, err.count("\n")) == (base.FAILED, 1)
    assert "a bug: KeyError at test_commands.py" in err
    assert "--debug" in err
    assert "Traceback" in call(capsys, "count", "--describe", "counts.npz", "--debug")[2]


def test_the_shell_can_be_taught(capsys):
    assert "--install-completion" in call(capsys, "--help")[1]
    script = app.generate_completion(shell="bash")
    assert all(name in script for name in COMMANDS)


def test_what_takes_long_says_so_and_what_is_quick_does_not(monkeypatch, capsys):
    with working("counting"):
        pass
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress_module, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(progress_module, "LINE_SECONDS", 0.001)
    with working("counting \x1b[2J") as told:
        told(3, 9)
        err = ""
        while "3 of 9" not in err:
            err += capsys.readouterr().err
    assert "counting \\x1b[2J: 3 of 9" in err


def test_calls_are_checked_before_a_model_is_loaded(tmp_path, monkeypatch, capsys):
    pytest.importorskip("transformers")
    text = tmp_path / "text.txt"
    text.write_text("One.\n\nTwo.\n\nThree.\n")
    model = tmp_path / "model"
    for words, told in (
        (("steer", model, "--text", text, "--direction", "up"), "no direction 'up'"),
        (("steer", model, "--text", text, "--ratios", 2, -1), "ratio -1"),
        (("steer", model, "--text", tmp_path / "none.txt"), "none.txt"),
        (("steer", model, "--text", text), "it is no folder"),
        (("prune", model, "--text", text, "--variant", "up"), "no variant 'up'"),
        (("prune", model, "--text", text, "--order", "up"), "no order 'up'"),
        (("prune", model, "--text", text, "--save", tmp_path / "out", "--code", "up"), "code 'up'"),
        (("prune", model, "--text", tmp_path / "none.txt"), "none.txt"),
        (("steer", model, "--text", text, "--over", "all", "--direction", "up"), "no direction 'up'"),
        (("prune", model, "--text", text, "--over", "all", "--variant", "up"), "no variant 'up'"),
    ):
        code, out, err = call(capsys, *words)
        assert (code, out) == (base.FAILED, ""), words
        assert told in err.splitlines()[-1], words


def test_a_name_that_no_hub_has_is_said_at_once(tmp_path, monkeypatch, capsys):
    hub = pytest.importorskip("huggingface_hub")
    text = tmp_path / "text.txt"
    text.write_text("One.\n\nTwo.\n\nThree.\n")

    def asked(self, name, *, timeout):
        assert timeout <= 10
        raise OSError("no such repository")

    monkeypatch.setattr(hub.HfApi, "model_info", asked)
    code, _, err = call(capsys, "steer", "nope", "--text", text)
    assert code == base.FAILED
    assert "no such folder, and the hub does not give it (no such repository)" in err


def test_json_of_a_plan_is_json(capsys):
    code, out, _ = call(capsys, "plan", "--vocab", 60, "--dim", 8, "--steps", 10, "--json")
    assert (code, json.loads(out)["snapshots"]) == (0, 11)


def test_what_answers_first_is_in_a_run_of_every_metric():
    from loops import COUNTS

    import trainhooks as th
    from trainhooks.cli.inspect import FIRST

    known = {variable.name for metric in th.default_metrics(COUNTS) for variable in metric.variables}
    assert set(FIRST) - known == {
        "loss",
        "recorder.milliseconds",
        "convergence.distance_to_final",
    }  # the recorder's own
