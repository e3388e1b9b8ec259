"""Byte mutations of stores and of every file that is read: each use ends in a result or in an error of this package.

Uses of a store (`faults_stores.py`): open and read everything, verify, repair, resume, compact, export; the other files
stand in `faults_readers.py`. A mutation flips, cuts, zeroes, grows or moves bytes, or changes a number in JSON and
seals the file again, as somebody who means harm would. None may take 10 s or raise the process's peak by 1 GB, and
where nothing was sealed again no number may read as another without an error or a finding.

Run as a script: `python benchmarks/faults_files.py --mutations 10000`.
"""

from __future__ import annotations

import argparse
import collections
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults_claims import CLAIMS, measure
from faults_readers import MAKERS, REFUSED, mutate_file
from faults_stores import SEALED, USES, mutate, stores

from trainhooks.store import StoreError

SECONDS = 10
PEAK_BYTES = 10**9


@dataclass(frozen=True)
class Target:
    """What is mutated and used: the good folders, the change of one file, the use, and the errors that refuse it.

    `check` says what is wrong with the numbers of a mutated folder, given its original and what the use returned.
    """

    originals: Callable[[Path], list[Path]]
    mutate: Callable[[Path, random.Random], str]
    use: Callable[[Path], object]
    refused: tuple[type[Exception], ...]
    check: Callable[[Path, Path, Any], str] = lambda path, original, result: ""


def _file(name: str) -> Target:
    make_files, use = MAKERS[name]

    def originals(folder: Path) -> list[Path]:
        (folder / "original").mkdir()
        make_files(folder / "original")
        return [folder / "original"]

    return Target(originals, mutate_file, use, REFUSED)


TARGETS = {name: Target(stores, mutate, use, (StoreError,), check) for name, (use, check) in USES.items()}
TARGETS |= {name: _file(name) for name in MAKERS}


class TookTooLongError(BaseException):
    """Nothing that is called may catch it."""


@contextmanager
def _limit() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TookTooLongError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def peak_bytes() -> int:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def outcome(target: Target, path: Path, original: Path, *, covered: bool) -> tuple[str, str]:
    """What a use of a mutated folder ended in, and what was wrong with that ("" where nothing was).

    `covered`: checksums cover what was changed, so that no number may be another without a word.
    """
    before = peak_bytes()
    try:
        with _limit():
            done = target.use(path)
        wrong = target.check(path, original, done) if covered else ""
        result = ("silent", wrong) if wrong else ("read", "")
    except TookTooLongError:
        result = "hang", f"took over {SECONDS} s"
    except Exception as error:
        own = type(error) in target.refused or isinstance(error, StoreError)
        result = ("refused", "") if own else ("foreign", f"{type(error).__name__}: {error}")
        if own and path.name not in str(error):
            result = "unnamed", f"{type(error).__name__} without a name: {error}"
    grown = peak_bytes() - before
    return ("memory", f"took {grown / 1e9:.1f} GB") if grown > PEAK_BYTES else result


def fuzz(name: str, mutations: int, *, seed: int, folder: Path) -> tuple[collections.Counter[str], list[str]]:
    """So many mutated folders, each used once: outcomes by kind, and what was wrong with whom."""
    outcomes: collections.Counter[str] = collections.Counter()
    wrong: list[str] = []
    target = TARGETS[name]
    originals = target.originals(folder)
    for number in range(mutations):
        rng = random.Random(f"{name} {seed} {number}")
        path = folder / "mutated"
        shutil.rmtree(path, ignore_errors=True)
        original = rng.choice(originals)
        shutil.copytree(original, path)
        did = [target.mutate(path, rng)]
        while path.exists() and any(one.is_file() for one in path.rglob("*")) and rng.random() < 0.3:
            did.append(target.mutate(path, rng))
        covered = not any(one.startswith(SEALED) for one in did)
        kind, problem = outcome(target, path, original, covered=covered)
        outcomes[kind] += 1
        if problem:
            wrong.append(f"{number}: {did}: {problem}")
    return outcomes, wrong


def claims(part: str, parent: str | None) -> int:
    """Print a line for each file that claims much: bytes, outcome, seconds, peak; 1 where one is beyond its bounds."""
    print("| what | MB on disk | outcome | seconds | peak GB |\n|---|---:|---|---:|---:|")
    bad = 0
    for name in (name for name in CLAIMS if part in name):
        with tempfile.TemporaryDirectory(dir=parent) as folder:
            line, fine = measure(name, Path(folder))
        print(line + ("" if fine else " BEYOND"), flush=True)
        bad |= not fine
    return bad


def main() -> int:
    """Print a line a target, and what was wrong; 1 where anything was."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--target", choices=[*TARGETS], action="append")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="where the files are made; one in memory is quick")
    parser.add_argument(
        "--claims", nargs="?", const="", help="measure files that claim much, those with this in their name"
    )
    given = parser.parse_args()
    if given.claims is not None:
        return claims(given.claims, given.folder)
    warnings.simplefilter("ignore")
    bad = 0
    for target in given.target or TARGETS:
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            began = time.monotonic()
            outcomes, wrong = fuzz(target, given.mutations, seed=given.seed, folder=Path(folder))
        peak = peak_bytes() / 1e9
        took = time.monotonic() - began
        print(f"{target}: {given.mutations} mutations, {dict(outcomes)}, {took:.0f} s, peak {peak:.2f} GB", flush=True)
        for line in wrong[:20]:
            print(f"  {line[:400]}")
        bad |= bool(wrong)
    return bad


if __name__ == "__main__":
    sys.exit(main())
