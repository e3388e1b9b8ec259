"""The commands that a reader would type, run in this process: the tool measures the grid, not code of its own."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

from trainhooks.cli import app


def trainhooks(*arguments: object) -> dict[str, Any]:
    """What `trainhooks ARGUMENTS --json` prints. Raises RuntimeError, with its words, where it fails."""
    words = [str(argument) for argument in arguments]
    text = _run([*words, "--json"])
    found: dict[str, Any] = json.loads(text)
    return found


def silent(*arguments: object) -> None:
    """A command that writes files. Raises RuntimeError, with its words, where it fails."""
    _run([str(argument) for argument in arguments])


def _run(words: list[str]) -> str:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = _exit_code(lambda: app(words))
    if code:
        raise RuntimeError(f"trainhooks {shlex.join(words)} ended with {code}: {err.getvalue() or out.getvalue()}")
    return out.getvalue()


def _exit_code(call: Callable[[], object]) -> int:
    try:
        call()
    except SystemExit as end:
        return int(end.code or 0) if not isinstance(end.code, str) else 1
    return 0
