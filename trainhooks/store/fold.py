"""Folding: from the journal's files into the arrays, a block at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.core.array_spec import ArrayConfigParams

from trainhooks.store.journal import Entry, JournalRecord
from trainhooks.store.layout import LABEL_COUNTS, SKETCH, SNAPSHOT, SNAPSHOT_STEP, STEP, Layout
from trainhooks.store.record import missing_value
from trainhooks.store.schema import shard_rows


def growing_names(layout: Layout) -> list[str]:
    """The arrays that get a row at each record."""
    sketch = [SKETCH] if layout.sketch_size else []
    return [STEP, *(variable.name for variable in layout.variables), *sketch]


def snapshot_names(layout: Layout) -> list[str]:
    """The arrays that get a row at each snapshot."""
    return [SNAPSHOT_STEP, SNAPSHOT, LABEL_COUNTS] if layout.snapshots else []


def open_arrays(store: Store, layout: Layout) -> dict[str, zarr.Array]:
    """Every growing array, ready to write."""
    names = [*growing_names(layout), *snapshot_names(layout)]
    # chunks of nothing but NaN are written too, so that a missing file always means a damaged store
    always: ArrayConfigParams = {"write_empty_chunks": True}
    return {name: zarr.open_array(store, path=name, mode="r+", zarr_format=3).with_config(always) for name in names}


def fold_records(arrays: Mapping[str, zarr.Array], layout: Layout, entries: Sequence[Entry], *, start: int) -> None:
    """Write the numbers and sketches of `entries` as rows `start` and on; what a record lacks is written as missing."""
    records = [JournalRecord(entry) for entry in entries]
    rows = {STEP: np.array([entry.step for entry in entries], dtype=np.int64)}
    for variable in layout.variables:
        rows[variable.name] = stacked(records, variable.name, layout.row_shape(variable), variable.dtype)
    if layout.sketch_size:
        rows[SKETCH] = stacked(records, SKETCH, (len(layout.groups), layout.sketch_size), "float32")
    for name, values in rows.items():
        _grow(arrays[name], start + len(entries))
        arrays[name][start:] = values


def fold_snapshots(arrays: Mapping[str, zarr.Array], layout: Layout, entries: Sequence[Entry], *, start: int) -> None:
    """Write the matrices of `entries` as snapshots `start` and on, block by block and shard by shard.

    Holds one shard of raw float32 in memory, and what the codecs make of it.
    """
    done = 0
    while done < len(entries):
        room = layout.block - (start + done) % layout.block
        part = entries[done : done + room]
        _fold_block(arrays, layout, part, start=start + done)
        done += len(part)


def _fold_block(arrays: Mapping[str, zarr.Array], layout: Layout, entries: Sequence[Entry], *, start: int) -> None:
    records = [JournalRecord(entry) for entry in entries]
    stop = start + len(entries)
    for name in snapshot_names(layout):
        _grow(arrays[name], stop)
    height = shard_rows(layout)
    for top in range(0, layout.vocab, height):
        rows = slice(top, min(top + height, layout.vocab))
        shard = np.empty((len(records), rows.stop - rows.start, layout.dim), dtype=np.float32)
        for position, record in enumerate(records):
            shard[position] = record.rows(rows)
        arrays[SNAPSHOT][start:stop, rows] = shard
    arrays[LABEL_COUNTS][start:stop] = stacked(records, LABEL_COUNTS, (layout.vocab,), "int64")
    arrays[SNAPSHOT_STEP][start:stop] = np.array([entry.step for entry in entries], dtype=np.int64)


def stacked(records: Sequence[JournalRecord], name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """One array of several records, [record, ...]; NaN (whole numbers: -1) where a record has none."""
    values = np.full((len(records), *shape), missing_value(dtype), dtype=dtype)
    for position, record in enumerate(records):
        if name in record.names:
            values[position] = record.array(name)
    return values


def clear_whole_run(arrays: Mapping[str, zarr.Array], layout: Layout) -> None:
    """Set the whole-run variables to missing: their run goes on, so they no longer describe it."""
    for variable in layout.variables:
        if variable.whole_run:
            arrays[variable.name][:] = missing_value(variable.dtype)


def _grow(array: zarr.Array, length: int) -> None:
    array.resize((length, *array.shape[1:]))
