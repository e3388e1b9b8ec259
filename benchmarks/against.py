"""Another version of this repository beside the present one: the same benchmark in two processes that take turns.

A script that has `--against REF` calls `compare`; the other version lies in a worktree of its own for that time. Both
processes run the *present* script, each with its own `trainhooks` (PYTHONPATH), so that only the library differs: such
a script imports names that both versions have. The processes are told when to measure, one at a time, in an order that
changes from round to round, so that a slow moment of the machine falls on both.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SERVE = "--serve"
NOW, THEN = "now", "then"
Round = dict[str, float]


@contextmanager
def worktree(ref: str) -> Iterator[tuple[Path, str]]:
    """The files of `ref` in a folder of their own, and its commit; both are gone afterwards."""
    commit = _git("rev-parse", "--short", f"{ref}^{{commit}}")
    with tempfile.TemporaryDirectory(prefix="against") as folder:
        path = Path(folder) / "tree"
        _git("worktree", "add", "--detach", str(path), commit)
        try:
            yield path, commit
        finally:
            _git("worktree", "remove", "--force", str(path))


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"git {arguments[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


class Served:
    """A process that measures one round when it is told to."""

    def __init__(self, script: Path, arguments: Sequence[str], tree: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONWARNINGS": "ignore"}
        self._process = subprocess.Popen(
            [sys.executable, str(script), *arguments, SERVE],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        home = Path(self._answer()["home"])
        if not home.is_relative_to(tree.resolve()):
            self.close()
            sys.exit(f"{home} was imported where {tree} was meant: run this with a Python that finds PYTHONPATH first.")

    def round(self, number: int) -> Round:
        """Measure one round; what took how long."""
        stream = self._process.stdin
        assert stream is not None
        stream.write(f"{number}\n")
        stream.flush()
        found: Round = self._answer()
        return found

    def close(self) -> None:
        """Let it end. Ends this program where that one failed."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        code = self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        if code:
            sys.exit(f"the benchmark ended with {code}")

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"the benchmark ended with {self._process.wait()} and said nothing")
        return json.loads(line)


def serve(measure: Callable[[int], Round]) -> None:
    """The other side of `Served`: measure a round for each number on standard input."""
    import trainhooks

    answers, sys.stdout = sys.stdout, sys.stderr  # what the benchmark prints itself is no answer
    print(json.dumps({"home": str(Path(trainhooks.__file__).resolve())}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(measure(int(line))), file=answers, flush=True)


def compare(script: str, arguments: Sequence[str], *, ref: str, rounds: int) -> list[dict[str, Any]]:
    """`rounds` rounds of each version, after one that is not counted: a row for each thing that was measured.

    A row has the medians `now` and `then`, and `ratio`, the median over rounds of one to the other.
    """
    with worktree(ref) as (tree, commit):
        sides = {NOW: Served(Path(script), arguments, ROOT), THEN: Served(Path(script), arguments, tree)}
        found: dict[str, list[Round]] = {NOW: [], THEN: []}
        for number in range(rounds + 1):
            order = (NOW, THEN) if number % 2 else (THEN, NOW)
            for side in order:
                measured = sides[side].round(number)
                if number:
                    found[side].append(measured)
        for side in sides.values():
            side.close()
    return [_row(name, found, commit) for name in found[NOW][0] if name in found[THEN][0]]


def _row(name: str, found: dict[str, list[Round]], commit: str) -> dict[str, Any]:
    now, then = ([one[name] for one in found[side]] for side in (NOW, THEN))
    return {
        "what": name,
        "then": statistics.median(then),
        "now": statistics.median(now),
        "ratio": statistics.median(a / b for a, b in zip(now, then, strict=True)),
        "ref": commit,
    }


def table(rows: Sequence[dict[str, Any]], *, unit: str) -> str:
    """The rows as a table in Markdown."""
    lines = [f"| what | {rows[0]['ref']}, {unit} | now, {unit} | now / {rows[0]['ref']} |", "|---|---|---|---|"]
    lines += [f"| {row['what']} | {row['then']:.2f} | {row['now']:.2f} | {row['ratio']:.3f} |" for row in rows]
    return "\n".join(lines)
