"""A store as xarray and pandas know data: labelled, with its matrices read when they are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray
from xarray.backends import BackendArray
from xarray.core import indexing

from trainhooks.store.format.layout import GROUP, SNAPSHOT, SNAPSHOT_STEP, TOKEN_COUNT, TOKEN_TEXT

if TYPE_CHECKING:
    import pandas

Store = Any
"""`trainhooks.store.reading.reader.Store`, which knows this module and is not known here."""

TOKEN, DIM = "token", "dim"


class _Matrices(BackendArray):
    """All output embeddings [snapshot, token, dim] as one array that reads only what is taken of it."""

    def __init__(self, store: Store) -> None:
        self.shape = (len(store.snapshots), store.vocab, store.dim)
        self.dtype = np.dtype(np.float32)
        self._snapshots = store.snapshots

    def __getitem__(self, key: Any) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER_1VECTOR, self._taken)

    def _taken(self, key: tuple[Any, ...]) -> np.ndarray:
        first, rows, columns = (np.arange(size)[one] for size, one in zip(self.shape, key, strict=True))
        wanted, back = np.unique(first, return_inverse=True)
        within = np.ix_(np.atleast_1d(rows), np.atleast_1d(columns))
        found = np.empty((len(wanted), *(len(axis.flatten()) for axis in within)), dtype=np.float32)
        for place, matrix in enumerate(self._snapshots.chosen(wanted.tolist())):
            found[place] = matrix[within]
        return found[back].reshape(first.shape + rows.shape + columns.shape)


def as_dataset(store: Store) -> xarray.Dataset:
    """Metrics, counts, texts and output embeddings; the latter lazily, on `snapshot_step`, `token` and `dim`."""
    found: xarray.Dataset = store.metrics()
    if len(store.snapshots):
        lazy = indexing.LazilyIndexedArray(_Matrices(store))
        found[SNAPSHOT] = ((SNAPSHOT_STEP, TOKEN, DIM), lazy)
        found = found.assign_coords({SNAPSHOT_STEP: np.asarray(store.snapshot_steps)})
    if store.token_counts is not None:
        found[TOKEN_COUNT] = ((TOKEN,), store.token_counts)
    if store.token_texts is not None:
        found = found.assign_coords({TOKEN_TEXT: ((TOKEN,), np.asarray(store.token_texts, dtype=object))})
    return found.assign_attrs({key: str(value) for key, value in store.attributes.items()})


def as_dataframe(store: Store) -> pandas.DataFrame:
    """A row a record: every scalar, and every metric by group as `name/group`; other vectors are left out."""
    import pandas

    found: xarray.Dataset = store.metrics()
    columns: dict[str, np.ndarray] = {}
    for name, values in found.data_vars.items():
        if values.dims == ("step",):
            columns[str(name)] = values.values
        elif values.dims == ("step", GROUP):
            columns |= {f"{name}/{group}": values.values[:, place] for place, group in enumerate(store.groups)}
    return pandas.DataFrame(columns, index=pandas.Index(store.steps, name="step"))
