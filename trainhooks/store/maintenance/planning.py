"""What a store will take before its run starts: bytes, files, bandwidth and memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from trainhooks.store.format.layout import Layout
from trainhooks.store.format.precision import BFLOAT16_MANTISSA_BITS, FLOAT32_MANTISSA_BITS
from trainhooks.store.format.schema import array_specs, file_count, inner_rows, required_bytes
from trainhooks.store.writing.options import Writing


class _Compressed(NamedTuple):
    """What the live profile made of heads in training (benchmarks/RESULTS.md), in matrices of float32.

    A snapshot of a full block takes 1 / `full`; the last block, where it is not full, `base` and 1 / `rest` for each of
    its snapshots. Learning rate and steps between snapshots move it by half.
    """

    full: float
    rest: float
    base: float

    def matrices(self, snapshots: int, *, block: int) -> float:
        """Of all snapshots."""
        blocks, left = divmod(snapshots, block)
        return blocks * block / self.full + (self.base + left / self.rest if left else 0)


_COMPRESSED = {BFLOAT16_MANTISSA_BITS: _Compressed(5.0, 4.5, 1.2), FLOAT32_MANTISSA_BITS: _Compressed(1.35, 1.25, 2.5)}


@dataclass(frozen=True)
class StorePlan:
    """What a run's store takes; every number in bytes but `files`, and all but the estimates bounds from above.

    `disk_bytes` at any moment, as if nothing were compressed; `estimated_bytes` at the end, as heads in training were
    compressed, to within a half (None: not measured at this precision). `bytes_per_second` is what the disk must take
    while training where the milliseconds of a step are known: journal and folded arrays. `queue_bytes` of records that
    wait for the writer, `fold_bytes` while a block is folded.
    """

    records: int
    snapshots: int
    disk_bytes: int
    estimated_bytes: int | None
    files: int
    bytes_per_second: float | None
    queue_bytes: int
    fold_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self)


def plan_store(
    layout: Layout,
    *,
    records: int,
    snapshots: int,
    total_steps: int,
    milliseconds: float | None = None,
    writing: Writing | None = None,
) -> StorePlan:
    """The plan of a store; `total_steps` and `milliseconds` a step give the run's length in time.

    Raises ValueError for numbers that make no sense.
    """
    if milliseconds is not None and not milliseconds > 0:
        raise ValueError(f"got {milliseconds} milliseconds a step; needed more than 0.")
    writing = writing or Writing()
    disk = required_bytes(layout, records=records, snapshots=snapshots)
    matrix = layout.vocab * layout.dim
    row = 4 * len(layout.groups) * layout.sketch_size
    compressed = _COMPRESSED.get(layout.kept_bits)
    folded = (
        None
        if compressed is None
        else int(4 * matrix * compressed.matrices(snapshots, block=layout.block)) + row * records
    )
    journal = (
        matrix * (2 if layout.kept_bits <= BFLOAT16_MANTISSA_BITS else 4) + 8 * layout.vocab
    ) * snapshots + row * records
    seconds = None if milliseconds is None else max(1, total_steps) * milliseconds / 1000
    return StorePlan(
        records=records,
        snapshots=snapshots,
        disk_bytes=disk,
        estimated_bytes=folded,
        files=file_count(layout, records=records, snapshots=snapshots),
        bytes_per_second=None if seconds is None else (journal + (disk if folded is None else folded)) / seconds,
        queue_bytes=writing.memory_bytes(layout),
        fold_bytes=fold_bytes(layout, threads=writing.fold_threads),
    )


def block_bytes(layout: Layout) -> int:
    """A block of the journal's matrices, which are mapped while they are folded."""
    if not layout.snapshots:
        return 0
    item = 2 if layout.kept_bits <= BFLOAT16_MANTISSA_BITS else 4
    return layout.block * layout.vocab * (item * layout.dim + 8)


def fold_bytes(layout: Layout, *, threads: int) -> int:
    """While matrices and the other arrays are folded."""
    return matrix_fold_bytes(layout, threads=threads) + row_fold_bytes(layout)


def matrix_fold_bytes(layout: Layout, *, threads: int) -> int:
    """Inner chunks that are encoded ahead, each beside its source."""
    inner = 4 * layout.block * inner_rows(layout) * layout.dim if layout.snapshots else 0
    return 2 * (2 * threads + 1) * inner


def row_fold_bytes(layout: Layout, *, records: int | None = None) -> int:
    """The largest chunk that holds no matrices: whole when it is made, later its frame as it was and as it grows.

    Both frames are as large as what a run of `records` puts into it (None: it is filled), should nothing compress.
    """

    def most(chunks: Sequence[int], item: int) -> int:
        held = chunks[0] if records is None else min(records, chunks[0])
        return max(chunks[0], 2 * held) * math.prod(chunks[1:]) * item

    others = (spec for spec in array_specs(layout) if spec.shards is None and spec.dtype != "string")
    return max(most(spec.chunks, np.dtype(spec.dtype).itemsize) for spec in others)
