"""Stores as targets of `faults_files.py`: small good ones, what is done to their files, their uses, and their numbers.

Every number of a good store follows from its step, so that what a mutated one reads as can be compared.
"""

from __future__ import annotations

import json
import random
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from trainhooks.core.variable import Variable
from trainhooks.store import Layout, Store, StoreError, StoreWriter, open_store
from trainhooks.store.maintenance.compact import compact
from trainhooks.store.maintenance.export import export_step
from trainhooks.store.maintenance.repair import repair
from trainhooks.store.maintenance.verify import Verified, verify

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
    if close:
        writer.finish({"end": np.arange(5.0)})
        writer.close()
    writer.release()
    return path


SEALED = "sealed"


def mutate(path: Path, rng: random.Random) -> str:
    """Change one file; returns what was done, which begins with `SEALED` where the checksums were made to fit."""
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
        return f"{_other_json(path, file, bytes(content), rng)} {file.relative_to(path)}"
    elif (
        kind == "piece"
        and _is_json(content[8 : 8 + int.from_bytes(content[:8], "little")])
        and file.name.endswith(".safetensors")
    ):
        _sealed_piece(file, content, rng)
        return f"{SEALED} piece {file.relative_to(path)}"
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


def _other_json(path: Path, file: Path, content: bytes, rng: random.Random) -> str:
    """One value of a JSON document changed; where it is the root or a manifest, its checksums made to fit."""
    text = json.dumps(_changed(json.loads(content), rng)).encode()
    if file == path / "zarr.json":
        file.write_bytes(seal(json.loads(text)))
        return f"{SEALED} json"
    if file.parent == path and reseal_manifest(path, file, text):
        return f"{SEALED} json"
    file.write_bytes(text)
    return "json"


def reseal_manifest(path: Path, file: Path, text: bytes) -> bool:
    """Put another manifest in the place of `file`, and have the root name it; False where there is no such root."""
    name = f".manifest-{zlib.crc32(text):08x}.json"
    try:
        root = json.loads((path / "zarr.json").read_bytes())
        root["attributes"]["trainhooks"]["manifest"] = name
    except (OSError, ValueError, TypeError, KeyError):  # changed before
        return False
    file.unlink()
    (path / name).write_bytes(text)
    (path / "zarr.json").write_bytes(seal(root))
    return True


def _changed(document: Any, rng: random.Random) -> object:
    """A document with one value or name changed."""
    node = document
    while True:
        key = rng.choice(list(node) if isinstance(node, dict) else list(range(len(node))))
        if not isinstance(node[key], (dict, list)) or not node[key] or rng.random() < 0.05:
            break
        node = node[key]
    if rng.random() < 0.2 and isinstance(node, dict):
        node[rng.choice(("x", "../x", "step", "", "\x1b[31m"))] = node.pop(key)
    else:
        node[key] = rng.choice(NUMBERS)
    return document


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
    reseal_piece(file, header, bytes(content[8 + length :]))


def reseal_piece(file: Path, header: object, numbers: bytes) -> None:
    """Put a journal file with another header in the place of `file`, under the name that fits its bytes."""
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + numbers
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
            sketch = np.full((1, 2), step, np.float32)
            writer.append(step, {"loss": step}, snapshot=np.full((6, 2), step, np.float32), sketch=sketch)
        writer.close()
    finally:
        writer.release()


def export(path: Path) -> None:
    """Export the first snapshot."""
    store = open_store(path)
    if len(store.snapshot_steps):
        out = path.with_name("export.safetensors")
        out.unlink(missing_ok=True)
        export_step(store, step=int(store.snapshot_steps[0]), out=out)


def stores(folder: Path) -> list[Path]:
    """A store that is complete, and one that ends in its journal."""
    return [make(folder / f"original-{close}", close=close) for close in (True, False)]


def wrong_numbers(path: Path, original: Path, *, ended: bool = True, short: bool = False) -> str:
    """Which numbers of a store are not those of its original, and which records it lacks without a word; "" for none.

    A record that was last in the journal leaves no trace that it was there. Without `ended`, the whole-run numbers are
    missing again; with `short`, records may be gone. What is refused is not compared.
    """
    try:
        store, good = open_store(path), open_store(original)
    except StoreError:
        return ""
    lost = sorted(set(range(5)) - set(store.steps.tolist()) - ({4} if good.waiting else set()))
    said = [f"lacks steps {lost}"] if lost and not short else []
    steps = store.steps.astype(float)
    end = steps if ended and good.complete else np.full(len(steps), np.nan)
    wanted: dict[str, tuple[Callable[[], Any], np.ndarray]] = {
        "loss": (lambda: store["loss"], steps),
        "end": (lambda: store["end"], end),
        "sketch": (lambda: store.sketch[:, 0, 0], steps),
        "token_count": (lambda: store.token_counts, np.arange(6)),
        "snapshots": (lambda: _matrices(store)[:, 5, 1], store.snapshot_steps),
        "path": (lambda: store.token_path(3)[:, 0], store.snapshot_steps),
    }
    for name, (values, right) in wanted.items():
        try:
            found = values()
        except StoreError:
            continue
        if not np.array_equal(np.asarray(found, np.float64), right.astype(np.float64), equal_nan=True):
            said.append(f"{name} is {found}, not {right}")
    return "; ".join(said)


def _matrices(store: Store) -> np.ndarray:
    """All of them, [snapshot, vocab, dim]."""
    matrices = [store.snapshots[number] for number in range(len(store.snapshots))]
    return np.array(matrices, np.float32).reshape(-1, store.vocab, store.dim)


def _sound(path: Path, original: Path, found: Verified) -> str:
    """What a verified store that is called sound has wrong, or refuses to read."""
    if not found.sound:
        return ""
    try:
        read(path)
    except StoreError as error:
        return f"sound by verify, yet {error}"
    return wrong_numbers(path, original)


def _mended(path: Path, original: Path, done: list[str]) -> str:
    """What repair made up, or cut off without a line that says so."""
    ended = not any(" as missing" in line for line in done)
    return wrong_numbers(path, original, ended=ended, short=any(" is cut to " in line for line in done))


def _exported(path: Path, original: Path, done: object) -> str:
    """An exported matrix that is not the store's."""
    out = path.with_name("export.safetensors")
    if not len(open_store(path).snapshot_steps):
        return "no snapshot is left"
    matrix = load_file(out)["output_embedding"]
    return "" if matrix.shape == (6, 2) and not matrix.any() else f"exported {matrix}"


def _same(path: Path, original: Path, done: object) -> str:
    return wrong_numbers(path, original)


def _gone_on(path: Path, original: Path, done: object) -> str:
    return wrong_numbers(path, original, ended=False)


# how each is used, and what is wrong with the numbers after it
USES: dict[str, tuple[Callable[[Path], Any], Callable[[Path, Path, Any], str]]] = {
    "open": (read, _same),
    "verify": (verify, _sound),
    "repair": (repair, _mended),
    "resume": (resume, _gone_on),
    "compact": (compact, _same),
    "export": (export, _exported),
}
