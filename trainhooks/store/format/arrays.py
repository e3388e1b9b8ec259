"""Which arrays grow, the metadata of one at a length, and records stacked for it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from trainhooks.store.format.journal import JournalRecord
from trainhooks.store.format.layout import LABEL_COUNTS, SKETCH, SNAPSHOT, SNAPSHOT_STEP, STEP, Layout
from trainhooks.store.format.root import METADATA
from trainhooks.store.format.validation import missing_value
from trainhooks.store.storage.zarr_store import ManifestStore

ArrayMetadata = Mapping[str, Any]


def growing_names(layout: Layout) -> list[str]:
    """The arrays that get a row at each record."""
    sketch = [SKETCH] if layout.sketch_size else []
    return [STEP, *(variable.name for variable in layout.variables), *sketch]


def snapshot_names(layout: Layout) -> list[str]:
    """The arrays that get a row at each snapshot."""
    return [SNAPSHOT_STEP, SNAPSHOT, LABEL_COUNTS] if layout.snapshots else []


def of_length(metadata: ArrayMetadata, length: int) -> dict[str, Any]:
    """The metadata of the same array with another length."""
    return {**metadata, "shape": [length, *metadata["shape"][1:]]}


def write_metadata(store: ManifestStore, name: str, metadata: ArrayMetadata) -> None:
    """Write an array's own metadata file."""
    store.put(f"{name}/{METADATA}", json.dumps(metadata, allow_nan=False).encode())


def stacked(records: Sequence[JournalRecord], name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """One array of several records, [record, ...]; NaN (whole numbers: -1) where a record has none."""
    values = np.full((len(records), *shape), missing_value(dtype), dtype=dtype)
    for position, record in enumerate(records):
        with suppress(KeyError):
            values[position] = record.array(name)
    return values
