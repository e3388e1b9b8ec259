"""Byte mutations of a store's files: whatever they say, each use ends in a result or in the store's own error.

Uses: open and read everything, verify, repair, resume, compact, export. A mutation flips, cuts, zeroes, grows or moves
bytes, or changes a number in JSON and seals the file again, as somebody who means harm would.

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
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

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


TARGETS: dict[str, Callable[[Path], object]] = {
    "open": read,
    "verify": verify,
    "repair": repair,
    "resume": resume,
    "compact": compact,
    "export": export,
}


def fuzz(target: str, mutations: int, *, seed: int, folder: Path) -> tuple[collections.Counter[str], list[str]]:
    """So many mutated stores, each used once: outcomes by kind, and what was wrong with whom.

    Wrong is another exception than StoreError (or an OSError of a folder in a file's place), and 10 s and more.
    """
    outcomes: collections.Counter[str] = collections.Counter()
    wrong: list[str] = []
    originals = [make(folder / f"original-{close}", close=close) for close in (True, False)]
    for number in range(mutations):
        rng = random.Random(f"{target} {seed} {number}")
        path = folder / "mutated"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(rng.choice(originals), path)
        did = [mutate(path, rng) for _ in range(rng.choice((1, 1, 1, 2, 3)))]
        began = time.monotonic()
        try:
            TARGETS[target](path)
            outcomes["read"] += 1
        except StoreError:
            outcomes["refused"] += 1
        except Exception as error:
            outcomes["foreign"] += 1
            wrong.append(f"{number}: {did}: {type(error).__name__}: {error}")
        if time.monotonic() - began > 10:
            wrong.append(f"{number}: {did}: took {time.monotonic() - began:.0f} s")
    return outcomes, wrong


def main() -> int:
    """Print a line a target, and what was wrong; 1 where anything was."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--target", choices=[*TARGETS], action="append")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    bad = 0
    for target in given.target or TARGETS:
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            outcomes, wrong = fuzz(target, given.mutations, seed=given.seed, folder=Path(folder))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        took = time.monotonic() - began
        print(f"{target}: {given.mutations} mutations, {dict(outcomes)}, {took:.0f} s, peak {peak:.2f} GB", flush=True)
        for line in wrong[:20]:
            print(f"  {line[:400]}")
        bad |= bool(wrong)
    return bad


if __name__ == "__main__":
    sys.exit(main())
