"""The command line's app, and what its commands share."""

from __future__ import annotations

import errno
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from traceback import extract_tb, format_exc
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter, validators

from trainhooks.core.printable import say, shown, shown_lines

FAILED = 1
"""Exit code: a mistake in what was given, or the work could not be done. One line on standard error says which."""
FOUND = 2
"""Exit code of `audit`, `verify` and `analyze`: the work was done, and something is wrong with what was looked at."""
WRONG_CALL = 64
"""Exit code: no such command or option, or a value of the wrong kind (EX_USAGE of sysexits.h). Nothing was done."""
_BROKEN_PIPE = 141
_DEBUG = "--debug"

EXIT_CODES = (
    f"Exit codes: 0 done; {FAILED} a mistake, said in one line; {FOUND} the work was done and found something wrong "
    f"(audit, verify, analyze); {WRONG_CALL} a wrong call; 130 interrupted. "
    f"With {_DEBUG} an error keeps its traceback. `trainhooks COMMAND --help` has examples; "
    "`trainhooks --install-completion` teaches the shell the commands."
)


class CommandLine(App):
    """The app of cyclopts with exit codes of our own, whatever its version, and `--debug` beside any command."""

    def __call__(self, tokens: str | Iterable[str] | None = None, **options: Any) -> Any:
        """Run a command. What cannot be read is one line and exit code 64; without `exit_on_error` it raises."""
        words = tokens.split() if isinstance(tokens, str) else list(sys.argv[1:] if tokens is None else tokens)
        with _debugging(_DEBUG in words):
            words = [word for word in words if word != _DEBUG]
            if options.get("exit_on_error") is False:
                return super().__call__(words, **options)
            try:
                return super().__call__(words, **{**options, "exit_on_error": False, "print_error": False})
            except CycloptsError as error:
                _say_wrong_call(error, words)
                sys.exit(WRONG_CALL)


app = CommandLine(
    name="trainhooks",
    help=f"Instrumentation for the training dynamics of language models.\n\n{EXIT_CODES}",
    help_format="markdown",
)
app.register_install_completion_command()

Several = Parameter(consume_multiple=True, negative=())
Flag = Annotated[bool, Parameter(negative=())]
Positive = Parameter(validator=validators.Number(gte=1))

_debug = False


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Register a command; a user's mistake becomes one line and exit code 1, a bug is named and says how to see more.

    The docstring's section Examples, one command a line, stands at the end of its help.
    """

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            with _warnings_shown():
                function(*args, **kwargs)
                sys.stdout.flush()
        except BrokenPipeError:  # `| head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(_BROKEN_PIPE)
        except Exception as error:
            if _debug:
                say(format_exc(), end="", error=True)
            else:
                say("error: " + _in_words(error, name=function.__name__).replace("\n", "\n  "), error=True)
            sys.exit(FAILED)

    more = {"help_epilogue": epilogue} if (epilogue := _epilogue(function)) and hasattr(app, "help_epilogue") else {}
    app.command(run, **more)
    return run


def examples(function: Callable[..., None]) -> list[str]:
    """The command lines under Examples in a command's docstring."""
    _, _, after = (inspect.getdoc(function) or "").partition("\nExamples\n--------\n")
    return [line for line in after.splitlines() if line]


def _epilogue(function: Callable[..., None]) -> str:
    lines = examples(function)
    return "\n".join(["Examples:", "", *(f"    {line}" for line in lines)]) if lines else ""


def _in_words(error: Exception, *, name: str) -> str:
    """A mistake in its own words; a bug by its kind and place. (No later line may begin as one of ours.)"""
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        asked = " Is the path right?" if error.errno == errno.ENOENT else ""
        return f"{error.filename}: {os.strerror(error.errno)}.{asked} `trainhooks {name} --help` has examples."
    if isinstance(error, (ValueError, OSError, ImportError)):
        return str(error)
    place = extract_tb(error.__traceback__)[-1]
    where = f"{os.path.basename(place.filename)}:{place.lineno}"
    return (
        f"a bug: {type(error).__name__} at {where}: {error}. The same command with {_DEBUG} shows where it came from."
    )


def _say_wrong_call(error: CycloptsError, words: list[str]) -> None:
    named = f" {words[0]}" if words and words[0] in app else ""
    told = " ".join(str(error).split())
    say(f"error: {told} `trainhooks{named} --help` has examples.", error=True)


@contextmanager
def _debugging(on: bool) -> Iterator[None]:
    global _debug  # noqa: PLW0603 - one command runs at a time
    before, _debug = _debug, on
    try:
        yield
    finally:
        _debug = before


@contextmanager
def _warnings_shown() -> Iterator[None]:
    """Warnings that reach the terminal are spelled as all else is."""
    spelled = warnings.formatwarning

    def formatted(message: Warning | str, *args: Any, **kwargs: Any) -> str:
        return shown_lines(spelled(shown(message), *args, **kwargs))

    warnings.formatwarning = formatted
    try:
        yield
    finally:
        warnings.formatwarning = spelled


def refuse_beside_over(given: dict[str, object]) -> None:
    """Raises ValueError for options that mean one model where a series of them was asked for."""
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"{name} is for one model, and --over for many: leave one of them out.")
