"""The command line's app, and what its commands share."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from traceback import format_exc
from typing import Annotated, Any

from cyclopts import App, Parameter, validators

from trainhooks.core.printable import say, shown, shown_lines

app = App(
    name="trainhooks",
    help="Instrumentation for the training dynamics of language models.",
    help_format="markdown",
)

Several = Parameter(consume_multiple=True, negative=())
Flag = Annotated[bool, Parameter(negative=())]
Positive = Parameter(validator=validators.Number(gte=1))


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Register a command; a user's mistake becomes one line and exit code 1, a bug keeps its traceback."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            with _warnings_shown():
                function(*args, **kwargs)
        except (ValueError, OSError, ImportError) as error:
            say("error: " + str(error).replace("\n", "\n  "), error=True)  # no later line begins as one of ours
            sys.exit(1)
        except Exception:
            say(format_exc(), end="", error=True)
            sys.exit(1)

    app.command(run)
    return run


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
