"""JAX's checkpoints through tensorstore: Orbax, MaxText (OCDBT or Zarr), Levanter and T5X (Zarr).

tensorstore itself refuses paths with `..` inside a database. What is looked at here before it reads: every array's
metadata, that no link leads out of the folder, and that no chunk is missing, which would be read as zeros.
"""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainhooks.checkpoints.base import CheckpointError, TensorEntry
from trainhooks.checkpoints.formats.dtypes import is_shape
from trainhooks.checkpoints.formats.format import Contents, Folder, Format
from trainhooks.checkpoints.formats.stored_tensor import DecodedTensor, StoredTensor, unreadable
from trainhooks.checkpoints.sources.byte_source import load_json
from trainhooks.checkpoints.sources.local_folder import LocalFolder

DATABASE = "manifest.ocdbt"
ZARR_2, ZARR_3 = ".zarray", "zarr.json"
OF_A_GROUP = (ZARR_3, ".zgroup", ".zmetadata")
BESIDE_ARRAYS = (ZARR_2, ZARR_3, ".zattrs")
DTYPES = {
    "<f8": "float64", "<f4": "float32", "<f2": "float16", "bfloat16": "bfloat16", "<i8": "int64", "<i4": "int32",
    "<i2": "int16", "|i1": "int8", "|u1": "uint8", "<u4": "uint32", "|b1": "bool", "float64": "float64",
    "float32": "float32", "float16": "float16", "int64": "int64", "int32": "int32", "int16": "int16", "int8": "int8",
    "uint8": "uint8", "uint32": "uint32", "bool": "bool",
}  # fmt: skip
MOST_METADATA, MOST_KEYS, MOST_BYTES = 1 << 20, 500_000, 1 << 42
SEEN_FOLDERS, DEPTH = 200, 12  # looked into to know the format; of a path's depth
EXTRA = "reading it needs tensorstore: pip install 'trainhooks[tensorstore]'"


@dataclass(frozen=True)
class _Array:
    """An array's place in a key-value store, its metadata, and how many chunks are there."""

    path: str
    driver: str
    metadata: dict[str, Any]
    chunks: int


def _are_arrays(folder: Folder) -> bool:
    if not isinstance(folder, LocalFolder) or any(name in folder.files for name in OF_A_GROUP):
        return False
    return _has_array(folder.path)


def _has_array(path: Path) -> bool:
    """Whether a Zarr array lies below, as far as a short look shows; links are not followed."""
    waiting, seen = [(path, 0)], 0
    while waiting and seen < SEEN_FOLDERS:
        (here, depth), seen = waiting.pop(), seen + 1
        with os.scandir(here) as listed:
            entries = list(listed)
        if depth and any(entry.name in (ZARR_2, ZARR_3) for entry in entries):
            return True
        below = [Path(entry.path) for entry in entries if depth < DEPTH and entry.is_dir(follow_symlinks=False)]
        waiting += [(inner, depth + 1) for inner in below]
    return False


def _read(folder: Folder) -> Contents:
    if not isinstance(folder, LocalFolder):
        raise CheckpointError(f"{folder.name} is a tensorstore checkpoint: download it and give its folder.")
    try:
        package: Any = importlib.import_module("tensorstore")
    except ImportError as error:
        raise ImportError(f"{folder.name} is a JAX checkpoint (OCDBT or Zarr); {EXTRA}.") from error
    root = os.path.realpath(folder.path)
    files = list(_walk(folder.path, root))
    base: dict[str, Any] = {"driver": "file", "path": root + "/"}
    if DATABASE in folder.files:
        base = {"driver": "ocdbt", "base": base}
        keys, get = _database(package, base, name=folder.name)
    else:
        keys, get = files, lambda key: _small(folder, key)
    tensors: dict[str, StoredTensor] = {}
    for array in _arrays(keys, get, name=folder.name):
        key = array.path.replace("/", ".")
        tensors[key] = _stored(package, base, array, key=key, name=folder.name)
    if not tensors:
        raise CheckpointError(f"{folder.name} holds no array.")
    return Contents(tensors)


def _walk(path: Path, root: str) -> Iterator[str]:
    """Every file below, by its path from here. Raises CheckpointError for a link that leads out, what is no file, and
    for too many."""
    count = 0
    for here, folders, files in os.walk(path):
        for name in (*folders, *files):
            place = os.path.join(here, name)
            if os.path.islink(place) and not os.path.realpath(place).startswith(root + os.sep):
                raise CheckpointError(f"{place} is a link out of the checkpoint; it is not followed.")
            if not os.path.exists(place) or not (os.path.isfile(place) or os.path.isdir(place)):
                raise CheckpointError(f"{place} is no regular file; a checkpoint's files must be.")
        count += len(files)
        if count > MOST_KEYS:
            raise CheckpointError(f"{path} holds more than {MOST_KEYS} files; they are not read.")
        yield from (os.path.relpath(os.path.join(here, name), path) for name in files)


def _database(package: Any, spec: dict[str, Any], *, name: str) -> tuple[list[str], Any]:
    """The keys of an OCDBT database, and what gives the value of one."""
    try:
        store = package.KvStore.open(spec).result()
        keys = [key.decode("utf-8", errors="replace") for key in store.list().result()]
    except (ValueError, OSError, RuntimeError) as error:
        raise CheckpointError(f"{name}: its database cannot be read: {str(error)[:300]}. Fetch it again.") from error
    if len(keys) > MOST_KEYS:
        raise CheckpointError(f"{name} holds more than {MOST_KEYS} keys; they are not read.")

    def get(key: str) -> bytes:
        try:
            return bytes(store.read(key).result().value)
        except (ValueError, OSError, RuntimeError) as error:
            raise CheckpointError(f"{name}: {key[:200]!r} cannot be read: {str(error)[:300]}.") from error

    return keys, get


def _small(folder: LocalFolder, key: str) -> bytes:
    source = folder.open(key)
    if source.size > MOST_METADATA:
        raise CheckpointError(f"{source.name} has {source.size} bytes; {MOST_METADATA} are allowed.")
    return bytes(source.read(0, source.size))


def _arrays(keys: list[str], get: Any, *, name: str) -> Iterator[_Array]:
    drivers = {ZARR_2: "zarr", ZARR_3: "zarr3"}
    found = {path: drivers[last] for path, _, last in (key.rpartition("/") for key in keys) if path and last in drivers}
    counts = dict.fromkeys(found, 0)
    for key in keys:
        path, _, last = key.rpartition("/")
        while path and last not in BESIDE_ARRAYS and path not in counts:
            path = path.rpartition("/")[0]
        if path in counts and last not in BESIDE_ARRAYS:
            counts[path] += 1
    for path, driver in sorted(found.items()):
        try:
            metadata = load_json(get(f"{path}/{ZARR_2 if driver == 'zarr' else ZARR_3}"))
        except CheckpointError:
            raise
        except ValueError as error:
            raise CheckpointError(f"{name}: the metadata of {path[:200]!r} is no JSON: {error}.") from error
        if not isinstance(metadata, dict):
            raise CheckpointError(f"{name}: the metadata of {path[:200]!r} is no object.")
        if metadata.get("node_type") != "group":
            yield _Array(path, driver, metadata, counts[path])


def _stored(package: Any, base: dict[str, Any], array: _Array, *, key: str, name: str) -> StoredTensor:
    shape, chunk = array.metadata.get("shape"), array.metadata.get("chunks")
    if array.driver == "zarr3":
        grid = array.metadata.get("chunk_grid")
        told = grid.get("configuration") if isinstance(grid, dict) else None
        chunk = told.get("chunk_shape") if isinstance(told, dict) else None
    if not is_shape(shape) or not is_shape(chunk) or len(shape) != len(chunk) or 0 in chunk:
        raise CheckpointError(f"{name}: {key[:200]!r} has a shape or chunks that are none.")
    if any(size > max(length, 1) for size, length in zip(chunk, shape, strict=True)):
        raise CheckpointError(
            f"{name}: {key[:200]!r} of shape {tuple(shape)} has chunks {tuple(chunk)} larger than it."
        )
    spelled = array.metadata.get("dtype", array.metadata.get("data_type"))
    dtype = DTYPES.get(spelled) if isinstance(spelled, str) else None
    if dtype is None:
        what = f"an array of dtype {str(spelled)[:40]}"
        return unreadable(key, what=what, shape=tuple(shape), file=array.path)
    wanted = math.prod(-(-length // size) for length, size in zip(shape, chunk, strict=True))
    size = math.prod(shape) * getattr(torch, dtype).itemsize
    entry = TensorEntry(key, dtype, tuple(shape), array.path, size)
    spec = {"driver": array.driver, "kvstore": {**base, "path": base.get("path", "") + array.path + "/"}}

    def decode() -> Tensor:
        if array.chunks != wanted:
            raise CheckpointError(
                f"{name}: {key!r} has {array.chunks} of {wanted} chunks; what is missing would be read as zeros. "
                "Fetch it again."
            )
        return _values(package, spec, entry, name=name)

    return DecodedTensor(entry, lambda: (), decode)


def _values(package: Any, spec: dict[str, Any], entry: TensorEntry, *, name: str) -> Tensor:
    if entry.nbytes > MOST_BYTES:
        raise CheckpointError(f"{name}: {entry.key!r} takes {entry.nbytes} bytes, more than are read.")
    try:
        values = np.array(package.open(spec, open=True, read=True).result().read().result())
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        raise CheckpointError(f"{name}: {entry.key!r} cannot be read: {str(error)[:300]}.") from error
    if values.shape != entry.shape:
        raise CheckpointError(f"{name}: {entry.key!r} is {values.shape}; its metadata says {entry.shape}.")
    if entry.dtype == "bfloat16":
        return torch.from_numpy(values.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(values)


OCDBT = Format("Orbax and MaxText (OCDBT)", lambda folder: DATABASE in folder.files, _read)
ZARR_ARRAYS = Format("Levanter, T5X, Orbax (a Zarr array a parameter)", _are_arrays, _read, is_certain=False)
