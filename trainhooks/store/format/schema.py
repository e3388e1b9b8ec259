"""Which Zarr arrays a layout needs: shapes, chunks and codecs, and an upper bound of their bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, TransposeCodec
from zarr.storage import MemoryStore

from trainhooks.core.variable import Variable
from trainhooks.store.format.layout import (
    GROUP,
    INNER_ROWS,
    LABEL_COUNTS,
    MISSING_COUNT,
    SKETCH,
    SKETCH_BUCKET,
    SNAPSHOT,
    SNAPSHOT_STEP,
    STEP,
    TOKEN_COUNT,
    TOKEN_TEXT,
    Layout,
)
from trainhooks.store.format.precision import error_bounds

MAX_SHARD_BYTES = 2 * 1024**3
SMALL_CHUNK_STEPS = 1024
# large enough that 10,000 snapshots of 50,304 x 768 stay under 2,000 files, small enough to be rewritten at each fold
SMALL_CHUNK_BYTES = 64 << 20
# what codecs and files can add to the raw bytes: blosc's header and crc32c a chunk, its entry in a shard's index,
# metadata (in the array and consolidated in the root), and one journal file's header
_CHUNK_OVERHEAD = 64
_METADATA_BYTES = 4096
_JOURNAL_OVERHEAD = 1024
_TENSOR_OVERHEAD = 256


@dataclass(frozen=True)
class ArraySpec:
    """One array: dimension names, shape of one entry along the first of them, chunks and shards, attributes.

    `shards` is None where a chunk is a file. The first dimension grows where it is `step` or `snapshot_step`;
    otherwise `length` is its size.
    """

    name: str
    dims: tuple[str, ...]
    row_shape: tuple[int, ...]
    dtype: str
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None = None
    length: int = 0
    transpose: tuple[int, ...] | None = None
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def fill_value(self) -> float | int | str:
        """What stands for "missing": NaN, -1 for whole numbers, the empty text."""
        if self.dtype == "string":
            return ""
        return math.nan if self.dtype.startswith("float") else MISSING_COUNT

    def shape(self, *, records: int, snapshots: int) -> tuple[int, ...]:
        """The array's shape once so many records and snapshots are folded."""
        length = {STEP: records, SNAPSHOT_STEP: snapshots}.get(self.dims[0], self.length)
        return (length, *self.row_shape)

    def raw_bytes(self, *, records: int, snapshots: int) -> int:
        """Bytes of the whole chunks (padding included) that hold so many records and snapshots."""
        shape = self.shape(records=records, snapshots=snapshots)
        tiles = [-(-size // part) * part for size, part in zip(shape, self.shards or self.chunks, strict=True)]
        return math.prod(tiles) * np.dtype(self.dtype).itemsize


def array_specs(layout: Layout) -> list[ArraySpec]:
    """Every array of a store with this layout; coordinates first."""
    return [*_coordinate_specs(layout), *_record_specs(layout), *_snapshot_specs(layout)]


def array_metadata(spec: ArraySpec) -> dict[str, Any]:
    """The Zarr v3 metadata of an array that has no rows yet (or, for fixed ones, no content)."""
    text = spec.dtype == "string"
    blosc = BloscCodec(
        cname="zstd",
        clevel=1,
        shuffle="noshuffle" if text else "bitshuffle",
        typesize=1 if text else np.dtype(spec.dtype).itemsize,
    )
    array = zarr.create_array(
        MemoryStore(),
        name=spec.name,
        shape=spec.shape(records=0, snapshots=0),
        dtype=spec.dtype,
        chunks=spec.chunks,
        shards=spec.shards,
        filters=None if spec.transpose is None else [TransposeCodec(order=spec.transpose)],
        compressors=[blosc, Crc32cCodec()],
        fill_value=spec.fill_value,
        dimension_names=spec.dims,
        attributes=spec.attributes,
    )
    return dict(array.metadata.to_dict())


def required_bytes(layout: Layout, *, records: int, snapshots: int) -> int:
    """The most bytes that a run's store has on disk at any moment, in bytes; compression is not counted on.

    Folded arrays as if nothing were compressed, plus a full journal, plus the new copy of the largest file while it
    replaces the old one. Raises ValueError for negative numbers, or snapshots where the layout keeps none.
    """
    if records < 0 or snapshots < 0 or snapshots > records:
        raise ValueError(f"got {records} records and {snapshots} snapshots; needed 0 <= snapshots <= records.")
    if snapshots and not layout.snapshots:
        raise ValueError(f"got {snapshots} snapshots, but the layout has snapshots=False; pass snapshots=0.")
    total = largest = 0
    for spec in array_specs(layout):
        if spec.dtype == "string":
            total += 2 * _METADATA_BYTES + _text_bytes(layout, spec.name)
            continue
        raw = spec.raw_bytes(records=records, snapshots=snapshots)
        inner = math.prod(spec.chunks) * np.dtype(spec.dtype).itemsize
        total += raw + _CHUNK_OVERHEAD * (-(-raw // inner) + 1) + 2 * _METADATA_BYTES
        largest = max(largest, min(raw, math.prod(spec.shards or spec.chunks) * np.dtype(spec.dtype).itemsize))
    provenance = len(json.dumps([layout.to_json(), dict(layout.attributes)]))
    return total + largest + _journal_bytes(layout, records=records, snapshots=snapshots) + 4 * provenance


def file_count(layout: Layout, *, records: int, snapshots: int) -> int:
    """Files of a closed store: chunks and shards, each array's metadata, the root, its spare copy, the manifest."""
    count = 3
    for spec in array_specs(layout):
        shape = spec.shape(records=records, snapshots=snapshots)
        tiles = zip(shape, spec.shards or spec.chunks, strict=True)
        count += 1 + math.prod(-(-size // part) for size, part in tiles)
    return count


def _journal_bytes(layout: Layout, *, records: int, snapshots: int) -> int:
    # up to a block of matrices and a block of records wait at once, and one more is written before either is folded
    waiting = min(snapshots, layout.block + 1)
    matrix = layout.vocab * (layout.dim * (2 if layout.kept_bits <= 7 else 4) + 8)
    row = 4 * len(layout.groups) * layout.sketch_size + _JOURNAL_OVERHEAD
    for variable in layout.variables:
        row += math.prod(layout.row_shape(variable)) * np.dtype(variable.dtype).itemsize + _TENSOR_OVERHEAD
    return waiting * matrix + min(records, 2 * layout.block + 2) * row


def _text_bytes(layout: Layout, name: str) -> int:
    texts = layout.groups if name == GROUP else layout.token_text or ()
    return sum(len(text.encode()) + 4 for text in texts) + _CHUNK_OVERHEAD


def _coordinate_specs(layout: Layout) -> Iterator[ArraySpec]:
    about = {"description": "optimizer updates done at each record", "unit": "step"}
    yield _growing(STEP, (STEP,), block=layout.block, about=about)
    if layout.groups:
        size = len(layout.groups)
        yield ArraySpec(GROUP, (GROUP,), (), "string", (size,), length=size)
    tokens = {TOKEN_COUNT: layout.token_count, TOKEN_TEXT: layout.token_text}
    yield from (spec for spec in token_specs(layout) if tokens[spec.name] is not None)


def token_specs(layout: Layout) -> list[ArraySpec]:
    """What a store with this layout may have of its tokens: the layout that is read back does not say."""
    about = {"description": "occurrences of each token in the corpus", "unit": "token"}
    size = layout.vocab
    return [
        ArraySpec(TOKEN_COUNT, ("token",), (), "int64", (size,), length=size, attributes=about),
        ArraySpec(TOKEN_TEXT, ("token",), (), "string", (size,), length=size),
    ]


def stored_specs(layout: Layout, arrays: Container[str]) -> list[ArraySpec]:
    """The arrays that a store with this layout has, where `arrays` are those that it declares."""
    return [spec for spec in [*array_specs(layout), *token_specs(layout)] if spec.name in arrays]


def _record_specs(layout: Layout) -> Iterator[ArraySpec]:
    for variable in layout.variables:
        yield _variable_spec(layout, variable)
    if layout.sketch_size:
        about = {"description": "fixed-seed linear sketch of each parameter group", "unit": "1"}
        row = (len(layout.groups), layout.sketch_size)
        dims = (STEP, GROUP, SKETCH_BUCKET)
        yield _growing(SKETCH, dims, row=row, dtype="float32", block=layout.block, about=about)


def _variable_spec(layout: Layout, variable: Variable) -> ArraySpec:
    about = {"description": variable.description, "unit": variable.unit, "whole_run": variable.whole_run}
    return _growing(
        variable.name,
        (STEP, *variable.dims),
        row=layout.row_shape(variable),
        dtype=variable.dtype,
        block=layout.block,
        about=about,
    )


def _snapshot_specs(layout: Layout) -> Iterator[ArraySpec]:
    if not layout.snapshots:
        return
    about: dict[str, Any] = {"description": "optimizer updates done at each snapshot", "unit": "step"}
    yield _growing(SNAPSHOT_STEP, (SNAPSHOT_STEP,), block=layout.block, about=about)
    about = {"description": "rows of the output embedding", "unit": "1", "mantissa_bits": layout.kept_bits}
    inner = (layout.block, inner_rows(layout), layout.dim)
    yield ArraySpec(
        SNAPSHOT,
        (SNAPSHOT_STEP, "token", "dim"),
        (layout.vocab, layout.dim),
        "float32",
        inner,
        shards=(layout.block, shard_rows(layout), layout.dim),
        # the step axis goes last, so that what hardly changes from step to step lies side by side
        transpose=(1, 2, 0),
        attributes=about | error_bounds(layout.kept_bits),
    )
    about = {"description": "labels trained on, by token, up to each snapshot; -1: not counted", "unit": "label"}
    dims = (SNAPSHOT_STEP, "token")
    yield _growing(LABEL_COUNTS, dims, row=(layout.vocab,), block=layout.block, about=about)


def inner_rows(layout: Layout) -> int:
    """Rows of the output embedding in an inner chunk."""
    return min(INNER_ROWS, layout.vocab)


def shard_rows(layout: Layout) -> int:
    """Rows of the output embedding in a shard: the fewest equal parts of whole inner chunks, each <= 2 GiB raw.

    One inner chunk's rows where even those are larger.
    """
    inner = inner_rows(layout)
    pieces = -(-layout.vocab // inner)
    most = max(1, MAX_SHARD_BYTES // (4 * layout.block * layout.dim * inner))
    parts = -(-pieces // most)
    return -(-pieces // parts) * inner


def _growing(
    name: str,
    dims: tuple[str, ...],
    *,
    row: tuple[int, ...] = (),
    dtype: str = "int64",
    block: int,
    about: dict[str, Any],
) -> ArraySpec:
    """An array whose chunks hold up to 1,024 steps (whole blocks), fewer where a row is large."""
    block_bytes = block * math.prod(row) * np.dtype(dtype).itemsize
    blocks = max(1, min(SMALL_CHUNK_STEPS // block, SMALL_CHUNK_BYTES // block_bytes))
    return ArraySpec(name, dims, row, dtype, (blocks * block, *row), attributes=about)
