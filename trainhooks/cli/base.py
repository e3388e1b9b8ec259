"""The command line's app, and what its commands share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

from cyclopts import App, Parameter, validators

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
            function(*args, **kwargs)
        except (ValueError, OSError, ImportError) as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)

    app.command(run)
    return run


def refuse_beside_over(given: dict[str, object]) -> None:
    """Raises ValueError for options that mean one model where a series of them was asked for."""
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"{name} is for one model, and --over for many: leave one of them out.")
