"""Chunks of all arrays but the output embedding, encoded and decoded here, in the thread that asks.

zarr-python reads and writes in an event loop of its own, which ends before the interpreter does, and which goes on
where the thread that waits for it is interrupted. What a writer leaves behind may depend on neither.

A chunk is a blosc frame (zstd, level 1, bit shuffle; text: none) and its crc32c; text is `vlen-utf8` before that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numcodecs import Blosc, VLenUTF8  # type: ignore[import-untyped]

from trainhooks.store.errors import StoreError
from trainhooks.store.format.blosc_frames import replaced_from
from trainhooks.store.format.integrity import chunk_length
from trainhooks.store.format.validation import missing_value
from trainhooks.store.storage.checksum import sealed, unsealed
from trainhooks.store.storage.zarr_store import ManifestStore

_NUMBERS = Blosc(cname="zstd", clevel=1, shuffle=Blosc.BITSHUFFLE)
_TEXT = Blosc(cname="zstd", clevel=1, shuffle=Blosc.NOSHUFFLE)

ArrayMetadata = Mapping[str, Any]


def write_rows(store: ManifestStore, name: str, metadata: ArrayMetadata, values: np.ndarray, *, start: int) -> None:
    """Write rows `start` and on of an array of numbers; rows behind them read as missing.

    Raises StoreError where the chunk before them is gone or damaged, OSError where the disk refuses.
    """
    length = chunk_length(metadata)
    stop = start + len(values)
    for first in range(start // length * length, stop, length):
        here, there = max(first, start), min(first + length, stop)
        part = values[here - start : there - start]
        if first < start:
            frame = _grown(store, name, metadata, part, number=first // length, start=start - first)
        else:
            frame = _encoded(metadata, part)
        store.put(_key(name, metadata, first // length), sealed(frame))


def _encoded(metadata: ArrayMetadata, values: np.ndarray, *, before: np.ndarray | None = None) -> bytes:
    """The frame of a chunk that holds the rows `before`, then `values`, and is missing behind them."""
    rows = _missing_chunk(metadata)
    start = 0 if before is None else len(before)
    if before is not None:
        rows[:start] = before
    rows[start : start + len(values)] = values
    frame: bytes = _NUMBERS.encode(rows)
    return frame


def _grown(
    store: ManifestStore, name: str, metadata: ArrayMetadata, values: np.ndarray, *, number: int, start: int
) -> bytes:
    """The frame of a chunk that is there, with `values` from its row `start` on and nothing behind them."""
    old, where = _read_frame(store, name, metadata, number)
    rows = np.ascontiguousarray(values, dtype=_dtype(metadata))
    missing = missing_value(str(metadata["data_type"]))
    row, items = math.prod(rows.shape[1:]), math.prod(_chunk_shape(metadata))
    with _decompressing(where):
        # a chunk has up to 64 MB of numbers, of which a block of records is a small part
        frame = replaced_from(old, _NUMBERS, rows, start=start * row, items=items, missing=missing)
        return _encoded(metadata, rows, before=_decoded(old, metadata)[:start]) if frame is None else frame


def read_rows(store: ManifestStore, name: str, metadata: ArrayMetadata) -> np.ndarray:
    """All rows of an array of numbers. Raises StoreError where a chunk is gone or damaged."""
    length, rows = chunk_length(metadata), int(metadata["shape"][0])
    chunks = [read_chunk(store, name, metadata, number) for number in range(-(-rows // length))]
    return np.concatenate([_missing_chunk(metadata)[:0], *chunks])[:rows]


def write_fixed(store: ManifestStore, name: str, metadata: ArrayMetadata, values: np.ndarray) -> None:
    """Write an array of one chunk, of numbers or of text."""
    if metadata["data_type"] == "string":
        frame = _TEXT.encode(VLenUTF8().encode(np.array(values.tolist(), dtype=object)))
    else:
        frame = _NUMBERS.encode(values.astype(_dtype(metadata)))
    store.put(_key(name, metadata, 0), sealed(frame))


def _missing_chunk(metadata: ArrayMetadata) -> np.ndarray:
    dtype = str(metadata["data_type"])
    return np.full(_chunk_shape(metadata), missing_value(dtype), dtype=_dtype(metadata))


def read_chunk(store: ManifestStore, name: str, metadata: ArrayMetadata, number: int) -> np.ndarray:
    """All rows of one chunk of an array of numbers or none. Raises StoreError where it is gone or damaged."""
    frame, where = _read_frame(store, name, metadata, number)
    with _decompressing(where):
        return _decoded(frame, metadata)


def _read_frame(store: ManifestStore, name: str, metadata: ArrayMetadata, number: int) -> tuple[bytes, str]:
    """A chunk's frame, its checksum compared, and where it lies."""
    key = _key(name, metadata, number)
    where = f"{store.storage}/{key}"
    try:
        return unsealed(store.storage.read(key), where=where), where
    except FileNotFoundError:
        raise StoreError(f"{store.storage} has lost {key}; `trainhooks verify` says what it held.") from None


def _decoded(frame: bytes, metadata: ArrayMetadata) -> np.ndarray:
    return np.frombuffer(_NUMBERS.decode(frame), dtype=_dtype(metadata)).reshape(_chunk_shape(metadata))


@contextmanager
def _decompressing(where: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise StoreError(f"{where} cannot be decompressed: {error}.") from error


def _key(name: str, metadata: ArrayMetadata, number: int) -> str:
    return f"{name}/c/{number}" + "/0" * (len(metadata["shape"]) - 1)


def _chunk_shape(metadata: ArrayMetadata) -> tuple[int, ...]:
    return tuple(int(size) for size in metadata["chunk_grid"]["configuration"]["chunk_shape"])


def _dtype(metadata: ArrayMetadata) -> np.dtype[Any]:
    return np.dtype(str(metadata["data_type"])).newbyteorder("<")
