"""Byte mutations of stores and of every file that is read: each use ends in a result or in an error of this package.

Uses of a store: open and read everything, verify, repair, resume, compact, export; the other files stand in
`faults_readers.py`. A mutation flips, cuts, zeroes, grows or moves bytes, or changes a number in JSON and seals the
file again, as somebody who means harm would. None may take 10 s or raise the process's peak by 1 GB.

Run as a script: `python benchmarks/faults_files.py --mutations 10000`.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from faults_readers import MAKERS, REFUSED, mutate_file

from trainhooks.store import Layout, StoreError, StoreWriter, open_store
from trainhooks.store.compact import compact
from trainhooks.store.export import export_step
from trainhooks.store.repair import repair
from trainhooks.store.verify import verify
from trainhooks.variable import Variable

LAYOUT = Layout(
    vocab=6,
    dim=2,
    groups=("g",),
    sketch_size=2,
    variables=(Variable("loss"), Variable("end", whole_run=True)),
    token_count=np.arange(6),
    block=2,
    attributes={"seed": 1},
)
NUMBERS = (-1, 0, 1, 2, 255, 2**31, 2**53, 2**63, 2**64, 10**30, -(10**30), 1.5, None, "", "..", [], {}, True)


def make(path: Path, *, close: bool) -> Path:
    """A tiny store: 5 records, the last of them in the journal where it is not closed."""
    writer = StoreWriter(path, LAYOUT)
    for step in range(5):
        matrix = np.full((6, 2), step, np.float32)
        writer.append(step, {"loss": step}, snapshot=matrix, sketch=np.full((1, 2), step, np.float32))
    writer.close() if close else writer.abandon()
    return path


def mutate(path: Path, rng: random.Random) -> str:
    """Change one file; returns what was done."""
    file = rng.choice(sorted(one for one in path.rglob("*") if one.is_file()))
    content = bytearray(file.read_bytes())
    kind = rng.choice(("flip", "cut", "zero", "grow", "copy", "empty", "gone", "json", "json", "json", "piece"))
    at = rng.randrange(len(content) + 1)
    if kind == "flip" and content:
        content[at % len(content)] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del content[at:]
    elif kind == "zero":
        content[at : at + 64] = bytes(len(content[at : at + 64]))
    elif kind == "grow":
        content[at:at] = rng.randbytes(rng.randrange(1, 40))
    elif kind == "copy":
        content[at:at] = content[: rng.randrange(len(content) + 1)]
    elif kind == "empty":
        content.clear()
    elif kind == "json" and _is_json(content) and file.name.endswith(".json"):
        _sealed_json(path, file, bytes(content), rng)
        return f"json {file.relative_to(path)}"
    elif (
        kind == "piece"
        and _is_json(content[8 : 8 + int.from_bytes(content[:8], "little")])
        and file.name.endswith(".safetensors")
    ):
        _sealed_piece(file, content, rng)
        return f"piece {file.relative_to(path)}"
    if kind == "gone":
        file.unlink()
    else:
        file.write_bytes(content)
    return f"{kind} {file.relative_to(path)}"


def _is_json(content: bytes) -> bool:
    try:
        return bool(json.loads(content))
    except (ValueError, RecursionError):
        return False


def _sealed_json(path: Path, file: Path, content: bytes, rng: random.Random) -> None:
    """One value of a JSON document changed, and the checksums that cover it made to fit."""
    document = json.loads(content)
    node = document
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = rng.choice(keys)
        if not isinstance(node[key], (dict, list)) or not node[key] or rng.random() < 0.05:
            break
        node = node[key]
    if rng.random() < 0.2 and isinstance(node, dict):
        node[rng.choice(("x", "../x", "step", "", "\x1b[31m"))] = node.pop(key)
    else:
        node[key] = rng.choice(NUMBERS)
    root = json.loads((path / "zarr.json").read_bytes()) if file.parent == path and file.name != "zarr.json" else None
    text = json.dumps(document).encode()
    if file == path / "zarr.json":
        file.write_bytes(seal(document))
    elif root is not None and file.name.startswith(".manifest"):
        file.unlink()
        name = f".manifest-{zlib.crc32(text):08x}.json"
        (path / name).write_bytes(text)
        root["attributes"]["trainhooks"]["manifest"] = name
        (path / "zarr.json").write_bytes(seal(root))
    else:
        file.write_bytes(text)


def seal(document: object) -> bytes:
    """A root's text whose checksum fits, as far as it has one."""
    text = re.sub(rb'"checksum": "[^"]*"', b'"checksum": "00000000"', json.dumps(document).encode(), count=1)
    return text.replace(b'"checksum": "00000000"', b'"checksum": "%08x"' % zlib.crc32(text), 1)


def _sealed_piece(file: Path, content: bytearray, rng: random.Random) -> None:
    """A journal file whose header is another, under the name that fits its bytes."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    name = rng.choice(list(header))
    if rng.random() < 0.3:
        header[rng.choice(("x", "loss", "sketch", "output_embedding", "end"))] = header.pop(name)
    else:
        key = rng.choice(list(header[name]))
        header[name][key] = rng.choice((*NUMBERS, [2**62, 4], [-1], [0, 0], "F64", "I8", "0:99", "3:1", "-1"))
    text = json.dumps(header).encode()
    content = bytearray(len(text).to_bytes(8, "little") + text) + content[8 + length :]
    file.unlink()
    stem = file.name.rpartition("-")[0]
    file.with_name(f"{stem}-{zlib.crc32(content):08x}.safetensors").write_bytes(content)


def read(path: Path) -> None:
    """Open a store and read all of it."""
    store = open_store(path)
    store.summary()
    for number, step in enumerate(store.snapshot_steps):
        _ = store.snapshots[number], store.output_embedding(step)
    _ = store.sketch, store["loss"], store["end"], store.token_counts, store.token_texts
    if len(store.snapshot_steps):
        store.token_path(3)


def resume(path: Path) -> None:
    """Go on for three records."""
    writer = StoreWriter(path, LAYOUT, mode="resume")
    try:
        first = (-1 if writer.last_step is None else writer.last_step) + 1
        for step in range(first, first + 3):
            writer.append(step, {"loss": step}, snapshot=np.full((6, 2), step, np.float32))
        writer.close()
    finally:
        writer.abandon()


def export(path: Path) -> None:
    """Export the first snapshot."""
    store = open_store(path)
    if len(store.snapshot_steps):
        out = path.with_name("export.safetensors")
        out.unlink(missing_ok=True)
        export_step(store, step=int(store.snapshot_steps[0]), out=out)


SECONDS = 10
PEAK_BYTES = 10**9


@dataclass(frozen=True)
class Target:
    """What is mutated and used: the good folders, the change of one file, the use, and the errors that refuse it."""

    originals: Callable[[Path], list[Path]]
    mutate: Callable[[Path, random.Random], str]
    use: Callable[[Path], object]
    refused: tuple[type[Exception], ...]


def stores(folder: Path) -> list[Path]:
    """A store that is complete, and one that ends in its journal."""
    return [make(folder / f"original-{close}", close=close) for close in (True, False)]


def _file(name: str) -> Target:
    make_files, use = MAKERS[name]

    def originals(folder: Path) -> list[Path]:
        (folder / "original").mkdir()
        make_files(folder / "original")
        return [folder / "original"]

    return Target(originals, mutate_file, use, REFUSED)


USES: dict[str, Callable[[Path], object]] = {
    "open": read,
    "verify": verify,
    "repair": repair,
    "resume": resume,
    "compact": compact,
    "export": export,
}
TARGETS = {name: Target(stores, mutate, use, (StoreError,)) for name, use in USES.items()}
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


def outcome(target: Target, path: Path) -> tuple[str, str]:
    """What a use of a mutated folder ended in, and what was wrong with that ("" where nothing was)."""
    before = peak_bytes()
    try:
        with _limit():
            target.use(path)
        result = "read", ""
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
        shutil.copytree(rng.choice(originals), path)
        did = [target.mutate(path, rng)]
        while path.exists() and any(one.is_file() for one in path.rglob("*")) and rng.random() < 0.3:
            did.append(target.mutate(path, rng))
        kind, problem = outcome(target, path)
        outcomes[kind] += 1
        if problem:
            wrong.append(f"{number}: {did}: {problem}")
    return outcomes, wrong


def main() -> int:
    """Print a line a target, and what was wrong; 1 where anything was."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--target", choices=[*TARGETS], action="append")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="where the files are made; one in memory is quick")
    given = parser.parse_args()
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
