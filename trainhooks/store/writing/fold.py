"""Folding: from the journal's files into the arrays, a block at a time and a tile of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from trainhooks.store.format.arrays import ArrayMetadata, of_length, snapshot_names, stacked
from trainhooks.store.format.chunks import write_rows
from trainhooks.store.format.journal import JournalRecord
from trainhooks.store.format.layout import LABEL_COUNTS, SKETCH, SNAPSHOT, SNAPSHOT_STEP, STEP, Layout
from trainhooks.store.format.schema import inner_rows, shard_rows
from trainhooks.store.format.shards import Shard, ShardShape, write_shard
from trainhooks.store.reading.block_reader import open_shard
from trainhooks.store.storage.base import ChecksumWriter
from trainhooks.store.storage.zarr_store import ManifestStore
from trainhooks.store.writing.fold_progress import FoldProgress


def fold_records(
    store: ManifestStore,
    arrays: Mapping[str, ArrayMetadata],
    layout: Layout,
    records: Sequence[JournalRecord],
    *,
    start: int,
) -> dict[str, dict[str, Any]]:
    """Write the numbers and sketches of `records` as rows `start` and on; what one lacks is written as missing.

    Returns the metadata of the arrays that grew; they are not written yet.
    """
    rows = {STEP: np.array([record.entry.step for record in records], dtype=np.int64)}
    for variable in layout.variables:
        rows[variable.name] = stacked(records, variable.name, layout.row_shape(variable), variable.dtype)
    if layout.sketch_size:
        rows[SKETCH] = stacked(records, SKETCH, (len(layout.groups), layout.sketch_size), "float32")
    return _write_rows(store, arrays, rows, start=start, stop=start + len(records))


def fold_snapshots(
    store: ManifestStore,
    arrays: Mapping[str, ArrayMetadata],
    layout: Layout,
    records: Sequence[JournalRecord],
    *,
    start: int,
    progress: FoldProgress,
) -> dict[str, dict[str, Any]]:
    """Write the matrices of `records` as snapshots `start` and on, block by block and shard by shard.

    Where `progress` is called off, CalledOffError, and nothing of it counts. Memory: a few inner chunks a thread,
    whatever the matrices' size, and one chunk of label counts. Returns the metadata of the arrays that grew; they are
    not written yet.
    """
    grown = {name: dict(arrays[name]) for name in snapshot_names(layout)}
    done = 0
    while done < len(records):
        room = layout.block - (start + done) % layout.block
        part = records[done : done + room]
        grown = _fold_block(store, grown, layout, part, start=start + done, progress=progress)
        done += len(part)
    return grown


def _fold_block(
    store: ManifestStore,
    arrays: Mapping[str, ArrayMetadata],
    layout: Layout,
    records: Sequence[JournalRecord],
    *,
    start: int,
    progress: FoldProgress,
) -> dict[str, dict[str, Any]]:
    stop = start + len(records)
    # a block that was closed before it was full has snapshots already: its shards are written anew
    first = start // layout.block * layout.block
    shape = ShardShape(layout.block, shard_rows(layout), layout.dim, inner_rows(layout))

    for number, top in enumerate(range(0, layout.vocab, shape.rows)):
        key = f"{SNAPSHOT}/c/{first // layout.block}/{number}/0"
        old = open_shard(store.storage, key, shape) if first < start else None

        def matrices(rows: slice, top: int = top, old: Shard | None = old) -> Iterator[np.ndarray]:
            progress.begin_tile()
            wanted = slice(top + rows.start, top + rows.stop)
            if old is not None:
                values = old.present(rows.start // shape.inner_rows)[: rows.stop - rows.start]
                yield from (values[:, :, snapshot] for snapshot in range(start - first))
            for record in records:
                yield record.stored_rows(wanted)

        def write(file: ChecksumWriter, key: str = key, top: int = top, tiles: Any = matrices) -> str:
            height = min(shape.rows, layout.vocab - top)
            write_shard(
                file,
                tiles,
                shape=shape,
                steps=stop - first,
                rows=height,
                threads=progress.threads,
                spent=progress.add_helper,
            )
            return key

        store.put_streamed(key, write)
    grown = {SNAPSHOT: of_length(arrays[SNAPSHOT], stop)}
    rows = {
        SNAPSHOT_STEP: np.array([record.entry.step for record in records], dtype=np.int64),
        LABEL_COUNTS: stacked(records, LABEL_COUNTS, (layout.vocab,), "int64"),
    }
    return grown | _write_rows(store, arrays, rows, start=start, stop=stop)


def _write_rows(
    store: ManifestStore, arrays: Mapping[str, ArrayMetadata], rows: Mapping[str, np.ndarray], *, start: int, stop: int
) -> dict[str, dict[str, Any]]:
    grown = {}
    for name, values in rows.items():
        grown[name] = of_length(arrays[name], stop)
        write_rows(store, name, grown[name], values, start=start)
    return grown
