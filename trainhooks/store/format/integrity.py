"""Whether a store's files are those that its last commit listed, or newer ones as an interruption may leave them."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np

from trainhooks.store.errors import StoreError
from trainhooks.store.format.declared import MALFORMED
from trainhooks.store.format.layout import SNAPSHOT
from trainhooks.store.format.root import METADATA, Root, read_manifest
from trainhooks.store.format.schema import stored_specs
from trainhooks.store.storage.base import Storage

Files = Mapping[str, tuple[int, str]]
MOST_NAMED = 100
UNQUESTIONED_BYTES = 1 << 28
# times smaller than raw that a chunk can be: 1,213 is what a chunk of one number only comes to
DENSEST = 4096


def check_files(storage: Storage, root: Root) -> None:
    """Raise StoreError, with every problem found, where a file that counts is gone or an array's metadata are damaged.

    Chunks are not read here: each has a checksum that every reader compares.
    """
    files = read_manifest(storage, root)
    there = set(storage.list())
    problems = [f"{key} is missing" for key in files if key not in there]
    there_too = [key for key in metadata_keys(files) if key in there]
    problems += [f"{key} is damaged" for key in there_too if metadata_damaged(storage, root, files, key)]
    problems += [f"{key} is missing" for key in unlisted_chunks(root, files)]
    if len(problems) > MOST_NAMED:
        problems[MOST_NAMED:] = ["and more of the kind"]
    if problems:
        raise StoreError(
            f"{storage} is damaged:\n- " + "\n- ".join(problems) + "\n`trainhooks verify` says what can be recovered."
        )
    check_claims(storage, root)


def metadata_keys(files: Files) -> list[str]:
    """The arrays' own metadata files."""
    return [key for key in files if key.endswith(f"/{METADATA}")]


def metadata_damaged(storage: Storage, root: Root, files: Files, key: str) -> bool:
    """Whether an array's own metadata are neither what was committed nor those of a fold that came no further."""
    content = storage.read(key)
    if fits(content, files[key]):
        return False
    return root.complete or not _is_ahead(content, root.arrays.get(key.removesuffix(f"/{METADATA}"), {}))


def fits(content: bytes | memoryview, listed: tuple[int, str]) -> bool:
    """Whether a file's bytes have the size and the CRC-32 that are listed."""
    return len(content) == listed[0] and f"{zlib.crc32(content):08x}" == listed[1]


def chunk_length(metadata: Mapping[str, Any]) -> int:
    """Entries along the first dimension that a chunk (or shard) holds."""
    return int(metadata["chunk_grid"]["configuration"]["chunk_shape"][0])


def unlisted_chunks(root: Root, files: Files) -> Iterator[str]:
    """Chunks that the committed shapes need and the manifest does not list; at most a few more than it lists."""
    for name, metadata in root.arrays.items():
        shape, chunk = metadata["shape"], metadata["chunk_grid"]["configuration"]["chunk_shape"]
        # a chunk spans everything but the steps and, in a shard, the rows
        counts = [-(-size // part) for size, part in zip(shape, chunk, strict=True)]
        parts = counts[1] if name == SNAPSHOT else 1
        rest = "/0" * (len(counts) - 1 - (name == SNAPSHOT))
        wanted = (
            f"{name}/c/{block}" + (f"/{part}" if name == SNAPSHOT else "") + rest
            for block in range(counts[0])
            for part in range(parts)
        )
        # what is absurd is not gone through to its end
        yield from islice((key for key in wanted if key not in files), MOST_NAMED)


def check_claims(storage: Storage, root: Root, *, waiting: int = 0) -> None:
    """Raise StoreError where the shapes claim more numbers than the store's files can hold: nothing may allocate them.

    `waiting` are the journal's records, whose rows may be missing, and are allocated then.
    """
    small = [spec for spec in stored_specs(root.layout, root.arrays) if spec.name != SNAPSHOT]
    claimed = sum(
        math.prod(spec.shape(records=root.records + waiting, snapshots=root.snapshots + waiting))
        * (4 if spec.dtype == "string" else np.dtype(spec.dtype).itemsize)
        for spec in small
    )
    if claimed > UNQUESTIONED_BYTES and claimed > DENSEST * storage.size():
        raise StoreError(
            f"{storage} claims {claimed:,} bytes of numbers, more than its {storage.size():,} bytes of files can hold. "
            "It is damaged, or was made so; restore it from a copy."
        )


def _is_ahead(content: bytes, committed: Mapping[str, Any]) -> bool:
    """Whether array metadata are the committed ones but for a first dimension of at least that length."""
    try:
        found = json.loads(content)
        length, *rest = found["shape"]
    except MALFORMED:
        return False
    if not committed or not isinstance(length, int) or length < 0:
        return False
    same = {key: value for key, value in found.items() if key != "shape"}
    wanted = {key: value for key, value in committed.items() if key != "shape"}
    # text, so that a fill value of NaN equals itself
    return rest == committed["shape"][1:] and json.dumps(same, sort_keys=True) == json.dumps(wanted, sort_keys=True)
