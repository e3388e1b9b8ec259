"""Shards of the output embedding: written chunk by chunk in bounded memory, and read back as they lie.

A shard is one Zarr v3 `sharding_indexed` file: inner chunks one after the other, then an index of (offset, size) pairs,
little-endian uint64, and the index's crc32c. An inner chunk holds `inner_rows` rows at all snapshots of a block,
[row, dim, snapshot] with the snapshot axis last (`transpose` [1, 2, 0], `bytes`), compressed by blosc, followed by its
crc32c. A chunk that lies wholly beyond the array is absent: offset and size are 2^64 - 1.

Source: Zarr v3 core, sharding codec 1.0 (zarr-specs, codecs/sharding-indexed); crc32c as in RFC 3720, 12.1.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64, UInt16

from trainhooks.store.errors import StoreError
from trainhooks.store.format.precision import unpack
from trainhooks.store.format.profiles import LIVE, Profile, decompress
from trainhooks.store.storage.checksum import _CHECKSUM_BYTES, sealed, unsealed

_ITEM, _HALF = np.dtype("<f4"), np.dtype("<u2")
_HALF_NAN = np.uint16(0x7FC0)
_INDEX = np.dtype("<u8")
_ABSENT = np.iinfo(np.uint64).max

Tiles = Callable[[slice], Iterable[np.ndarray]]


@runtime_checkable
class Writable(Protocol):
    """What a shard is written to: a file, or the body of an upload."""

    def write(self, data: bytes, /) -> object:
        """Take the next bytes."""


@dataclass(frozen=True)
class ShardShape:
    """A shard as the array's metadata declare it: `block` snapshots of `rows` rows of `dim` numbers.

    `inner_rows` are an inner chunk's. Raises ValueError where they do not divide `rows`, or a size is below 1.
    """

    block: int
    rows: int
    dim: int
    inner_rows: int

    def __post_init__(self) -> None:
        if min(self.block, self.rows, self.dim, self.inner_rows) < 1 or self.rows % self.inner_rows:
            raise ValueError(f"{self}: needed sizes of 1 or more, and rows a multiple of inner_rows.")

    @property
    def chunks(self) -> int:
        """Inner chunks of a shard."""
        return self.rows // self.inner_rows

    @property
    def chunk_shape(self) -> tuple[int, int, int]:
        """An inner chunk as it lies in the file before compression: row, dim, snapshot."""
        return self.inner_rows, self.dim, self.block


def write_shard(
    file: Writable,
    tiles: Tiles,
    *,
    shape: ShardShape,
    steps: int,
    rows: int,
    profile: Profile = LIVE,
    threads: int = 2,
    spent: Callable[[float], None] | None = None,
) -> int:
    """Write the shard of `steps` snapshots and `rows` rows (of those that `shape` has room for); returns its bytes.

    `tiles(slice)` gives those rows of the shard, 0 to `rows`, [steps, row, dim]: an array, or an iterable of one
    [row, dim] array a snapshot, which is copied before the next is asked for. They are float32, or uint16, the upper
    halves of float32 whose lower ones are zero: half the work. It is called from `threads` threads
    at once, for up to `shape.inner_rows` rows; with one thread it is the caller's. What has no value yet is NaN, the
    fill value. `spent` hears the CPU seconds of other threads.

    Memory: about three raw inner chunks a thread, and their compressed bytes; whatever `tiles` holds comes on top.

    Raises ValueError where sizes do not fit; what `tiles` and `file` raise passes through, and the file is then not
    whole.
    """
    if not (1 <= steps <= shape.block and 1 <= rows <= shape.rows):
        raise ValueError(
            f"got {steps} snapshots of {rows} rows; a shard holds 1 to {shape.block} of 1 to {shape.rows}."
        )

    def encode(chunk: int) -> bytes | None:
        start = chunk * shape.inner_rows
        if start >= rows:
            return None
        part = slice(start, min(start + shape.inner_rows, rows))
        values = _snapshots_last(tiles(part), shape, steps=steps, rows=part.stop - start)
        return sealed(profile.compress_upper(values) if values.dtype == _HALF else profile.compress(values))

    return _assemble(file, encode, chunks=shape.chunks, threads=threads, spent=spent)


def recompress_shard(file: Writable, shard: Shard, *, profile: Profile, threads: int = 2) -> int:
    """Write the content of `shard` again with another profile, bit for bit the same numbers; returns its bytes.

    Raises StoreError where a chunk of the shard is damaged.
    """

    def encode(chunk: int) -> bytes | None:
        values = shard.values(chunk)
        return None if values is None else sealed(profile.compress(values))

    return _assemble(file, encode, chunks=shard.shape.chunks, threads=threads)


class Shard:
    """A shard's bytes, such as a memory-mapped file; its size and the index's checksum are checked at once.

    `where` names it in messages. Raises StoreError where the bytes are not a whole shard.
    """

    def __init__(self, data: bytes | memoryview, *, shape: ShardShape, where: str) -> None:
        self.shape, self._where = shape, where
        index_bytes = 2 * _INDEX.itemsize * shape.chunks + _CHECKSUM_BYTES
        if len(data) < index_bytes:
            raise StoreError(f"{where} has {len(data)} bytes, its index alone needs {index_bytes}: it was cut short.")
        self._body = memoryview(data)[:-index_bytes]
        index = unsealed(bytes(data[-index_bytes:]), where=f"the index of {where}")
        self._index = np.frombuffer(index, dtype=_INDEX).reshape(-1, 2)

    def made_by(self, profile: Profile) -> bool:
        """Whether all chunks have the shuffle of `profile`, as far as their headers say. Raises StoreError."""
        return all(profile.made(frame) for chunk in range(self.shape.chunks) if (frame := self._frame(chunk)))

    def values(self, chunk: int) -> Float32[np.ndarray, "row dim snapshot"] | None:
        """An inner chunk's numbers, its checksum checked; None where the chunk is absent. Raises StoreError."""
        frame = self._frame(chunk)
        if frame is None:
            return None
        where = f"chunk {chunk} of {self._where}"
        content = unsealed(bytes(frame), where=where)
        try:
            return decompress(content).reshape(self.shape.chunk_shape)
        except (RuntimeError, ValueError) as error:
            raise StoreError(f"{where} cannot be decompressed: {error}.") from error

    def present(self, chunk: int) -> Float32[np.ndarray, "row dim snapshot"]:
        """As `values`, of a chunk that must be there. Raises StoreError where it is absent, too."""
        values = self.values(chunk)
        if values is None:
            raise StoreError(f"chunk {chunk} of {self._where} is absent.")
        return values

    def rows_with_nan(self, *, steps: int, rows: int) -> Int64[np.ndarray, "snapshot"]:
        """How many of the first `rows` rows have a NaN at each of the first `steps` snapshots; reads every chunk.

        Raises StoreError where a chunk is damaged, or absent although it has such rows.
        """
        counts = np.zeros(steps, dtype=np.int64)
        for chunk in range(self.shape.chunks):
            height = min(self.shape.inner_rows, rows - chunk * self.shape.inner_rows)
            values = self.values(chunk)
            if height <= 0 or not steps:
                continue
            if values is None:
                raise StoreError(f"chunk {chunk} of {self._where} is absent.")
            counts += np.isnan(values[:height, :, :steps]).any(axis=1).sum(axis=0)
        return counts

    def _frame(self, chunk: int) -> memoryview | None:
        """A chunk's bytes with their checksum."""
        offset, size = (int(number) for number in self._index[chunk])
        if offset == size == _ABSENT:
            return None
        if size < _CHECKSUM_BYTES or offset + size > len(self._body):
            raise StoreError(f"chunk {chunk} of {self._where} lies outside the file: its index is wrong.")
        return self._body[offset : offset + size]


def _assemble(
    file: Writable,
    encode: Callable[[int], bytes | None],
    *,
    chunks: int,
    threads: int,
    spent: Callable[[float], None] | None = None,
) -> int:
    """Chunks in order, encoded ahead by a few threads; then the index."""
    index = np.full((chunks, 2), _ABSENT, dtype=_INDEX)
    size = 0
    with closing(_ahead(encode, count=chunks, threads=threads, spent=spent)) as encoded:
        for chunk, data in enumerate(encoded):
            if data is not None:
                index[chunk] = size, len(data)
                file.write(data)
                size += len(data)
    tail = sealed(index.tobytes())
    file.write(tail)
    return size + len(tail)


def _ahead(
    encode: Callable[[int], bytes | None], *, count: int, threads: int, spent: Callable[[float], None] | None
) -> Generator[bytes | None, None, None]:
    """What `encode` gives for 0 ... `count` - 1, in order; each thread is at most two chunks ahead."""
    if threads == 1:  # here: the last thread that runs when Python ends cannot begin others
        yield from map(encode, range(count))
        return
    waiting: deque[Future[tuple[bytes | None, float]]] = deque()

    def timed(chunk: int) -> tuple[bytes | None, float]:
        begin = time.thread_time()
        return encode(chunk), time.thread_time() - begin

    def next_one() -> bytes | None:
        data, seconds = waiting.popleft().result()
        if spent is not None:
            spent(seconds)
        return data

    pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="trainhooks-shard")
    try:
        for chunk in range(count):
            waiting.append(pool.submit(timed, chunk))
            if len(waiting) > 2 * threads:
                yield next_one()
        while waiting:
            yield next_one()
    finally:
        pool.shutdown(cancel_futures=True)


def _snapshots_last(
    tile: Iterable[np.ndarray], shape: ShardShape, *, steps: int, rows: int
) -> Float32[np.ndarray, "row dim snapshot"] | UInt16[np.ndarray, "row dim snapshot"]:
    """A whole inner chunk [row, dim, snapshot]; NaN where there is no snapshot or no row. uint16 where all of it is."""
    given = 0
    # one matrix after the other, and turned around at once: a quarter of the time of a strided copy of each
    stacked = np.empty(0, dtype=_ITEM)
    for given, matrix in enumerate(tile, start=1):
        if given > steps or matrix.shape != (rows, shape.dim) or matrix.dtype not in (_ITEM, _HALF):
            raise ValueError(
                f"snapshot {given} of a tile is {matrix.dtype} {matrix.shape}; needed {steps} of float32 or uint16 "
                f"({rows}, {shape.dim})."
            )
        if given == 1:
            stacked = np.empty((shape.block, rows, shape.dim), dtype=matrix.dtype)
        elif matrix.dtype == _ITEM and stacked.dtype == _HALF:
            stacked = unpack(stacked)
        stacked[given - 1] = unpack(matrix) if matrix.dtype != stacked.dtype else matrix
    if given < steps:
        raise ValueError(f"a tile has {given} snapshots, needed {steps}.")
    missing = np.float32(np.nan) if stacked.dtype == _ITEM else _HALF_NAN
    stacked[steps:].fill(missing)
    chunk = np.empty(shape.chunk_shape, dtype=stacked.dtype)
    chunk[:rows].reshape(-1, shape.block)[...] = stacked.reshape(shape.block, -1).T
    chunk[rows:].fill(missing)
    return chunk
