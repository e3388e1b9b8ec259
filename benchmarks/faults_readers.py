"""The files that are read beside stores, as targets of `faults_files.py`: a small good one of each, and its reader."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from foreign_formats import NEEDS_TENSORSTORE, WRITERS

from trainhooks.checkpoints.base import CheckpointError
from trainhooks.checkpoints.head_key import head_key
from trainhooks.checkpoints.opening import open_checkpoint
from trainhooks.checkpoints.suite import AmbiguousNames, list_suite
from trainhooks.core.token_counts import TokenCounts
from trainhooks.corpora.base import Settings
from trainhooks.corpora.megatron import megatron_pieces
from trainhooks.probe_report.source import open_matrix

TENSORS = {"embed.weight": torch.arange(12.0).reshape(4, 3), "other": torch.ones(2, dtype=torch.bfloat16)}
REFUSED = (ValueError, AmbiguousNames, CheckpointError, FileNotFoundError)
CHANGED: tuple[Any, ...] = (-1, 0, 255, 2**31, 2**63, 2**64, 10**30, 1.5, None, "", [], {}, [2**62, 4], [-1], "F64")


def make_safetensors(folder: Path) -> None:
    """Two tensors in one file."""
    save_file(TENSORS, folder / "a.safetensors")


def make_torch_zip(folder: Path) -> None:
    """The same two as `torch.save` writes them."""
    torch.save(TENSORS, folder / "a.pt")


def make_distributed(folder: Path) -> None:
    """The same two as a distributed checkpoint."""
    import torch.distributed.checkpoint as dcp

    dcp.save(dict(TENSORS), checkpoint_id=folder / "dcp", no_dist=True)


def make_megatron(folder: Path) -> None:
    """Three sequences of nine ids and their index."""
    sizes, ids = np.array([3, 2, 4], "<i4"), np.arange(9, dtype="<u2")
    pointers, documents = np.array([0, 6, 10], "<i8"), np.array([0, 1, 3], "<i8")
    head = b"MMIDIDX\0\0" + (1).to_bytes(8, "little") + b"\x08" + (3).to_bytes(8, "little") * 2
    (folder / "a.bin").write_bytes(ids.tobytes())
    (folder / "a.idx").write_bytes(head + sizes.tobytes() + pointers.tobytes() + documents.tobytes())


def make_counts(folder: Path, suffix: str) -> None:
    """Counts of 39 tokens."""
    TokenCounts(np.arange(1, 40), documents=3, rule="all").save(folder / f"counts{suffix}")


def make_matrix(folder: Path) -> None:
    """One matrix as NumPy writes it."""
    np.save(folder / "matrix.npy", np.ones((4, 3), np.float32))


def read_checkpoint(path: Path) -> None:
    """Every tensor of a checkpoint; a tensor may be refused by itself."""
    checkpoint = open_checkpoint(path)
    for key in checkpoint.tensors:
        try:
            checkpoint.read(key)
        except CheckpointError:
            continue


def make_foreign(writer: Callable[[Path], None]) -> Callable[[Path], None]:
    """One checkpoint of another project's format."""
    return lambda folder: writer(folder / "step1")


def read_foreign(folder: Path) -> None:
    """Its head, and every tensor."""
    read_checkpoint(folder / "step1")
    head_key(open_checkpoint(folder / "step1"))


def make_manifest(folder: Path, suffix: str) -> None:
    """Three checkpoints of two stages."""
    rows = [("org/name@a", "10", "1B", "first"), ("b", "20k", "", "first"), ("https://h/c", "5", "2T", "second")]
    columns = ("place", "step", "tokens", "stage")
    text = "\n".join(",".join(row) for row in (columns, *rows))
    if suffix == ".yaml":
        text = json.dumps([dict(zip(columns, row, strict=True)) for row in rows])
    (folder / f"table{suffix}").write_text(text)


def read_megatron(path: Path) -> None:
    """All tokens of an indexed data set, counted."""
    for piece in megatron_pieces(path):
        piece.tally(Settings(vocab_size=9))


MAKERS = {
    "safetensors": (make_safetensors, lambda folder: read_checkpoint(folder / "a.safetensors")),
    "torch_zip": (make_torch_zip, lambda folder: read_checkpoint(folder / "a.pt")),
    "distributed": (make_distributed, lambda folder: read_checkpoint(folder / "dcp")),
    "megatron": (make_megatron, lambda folder: read_megatron(folder / "a.idx")),
    "counts_npz": (lambda folder: make_counts(folder, ".npz"), lambda folder: TokenCounts.load(folder / "counts.npz")),
    "counts_npy": (lambda folder: make_counts(folder, ".npy"), lambda folder: TokenCounts.load(folder / "counts.npy")),
    "counts_csv": (lambda folder: make_counts(folder, ".csv"), lambda folder: TokenCounts.load(folder / "counts.csv")),
    "matrix_npy": (make_matrix, lambda folder: open_matrix(folder / "matrix.npy")),
}

MAKERS |= {
    f"manifest_{kind}": (
        lambda folder, kind=kind: make_manifest(folder, f".{kind}"),
        lambda folder, kind=kind: list_suite(folder / f"table.{kind}"),
    )
    for kind in ("csv", "yaml")
}
FOREIGN = {
    form: writer for form, writer in WRITERS.items() if form not in NEEDS_TENSORSTORE or find_spec("tensorstore")
}
MAKERS |= {form.lower().replace(" ", "_"): (make_foreign(FOREIGN[form]), read_foreign) for form in FOREIGN}


def mutate_file(folder: Path, rng: random.Random) -> str:
    """Change one file of a folder; returns what was done."""
    file = rng.choice(sorted(one for one in folder.rglob("*") if one.is_file()))
    kind = rng.choice(("set", "set", "header", "cut out", "double", "fill", "end", "empty", "gone"))
    if kind == "gone" and rng.random() < 0.9:  # one is like another
        kind = "set"
    content = bytearray(file.read_bytes())
    at = rng.randrange(len(content) + 1)
    stop = at + rng.randrange(1, 17)
    if kind == "header" and file.suffix == ".safetensors":
        content = _other_header(content, rng)
    elif kind in ("set", "header"):
        content[at : at + 1] = rng.randbytes(1)
    elif kind == "cut out":
        del content[at:stop]
    elif kind == "double":
        content[at:at] = content[at:stop]
    elif kind == "fill":
        content[at:stop] = rng.choice((b"\0", b"\xff")) * len(content[at:stop])
    elif kind == "end":
        del content[at:]
    elif kind == "empty":
        content.clear()
    file.unlink() if kind == "gone" else file.write_bytes(content)
    return f"{kind} {file.relative_to(folder)} at {at}"


def _other_header(content: bytearray, rng: random.Random) -> bytearray:
    """A safetensors file whose header says something else, in sound JSON."""
    length = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + length])
        entry = header[rng.choice(sorted(header))]
        entry[rng.choice(sorted(entry))] = rng.choice(CHANGED)
    except (ValueError, TypeError, IndexError, AttributeError):  # changed before, into no header
        return content[:-1]
    text = json.dumps(header).encode()
    return bytearray(len(text).to_bytes(8, "little") + text) + content[8 + length :]
