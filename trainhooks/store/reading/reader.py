"""Reading a store: what is folded and what is still in the journal, as one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from jaxtyping import Float32, Int64

from trainhooks.core.accessors import accessor
from trainhooks.core.html import card
from trainhooks.core.printable import shown
from trainhooks.core.variable import Variable
from trainhooks.store.errors import StoreError
from trainhooks.store.format.arrays import stacked
from trainhooks.store.format.integrity import check_claims, check_files
from trainhooks.store.format.journal import JournalRecord, check_chain, complete_entries
from trainhooks.store.format.kept import kept_branches
from trainhooks.store.format.layout import (
    GROUP,
    LABEL_COUNTS,
    MISSING_COUNT,
    SKETCH,
    SNAPSHOT,
    SNAPSHOT_STEP,
    STEP,
    TOKEN_COUNT,
    TOKEN_TEXT,
    Layout,
)
from trainhooks.store.format.profiles import PROFILES
from trainhooks.store.format.root import check_attempt, read_root
from trainhooks.store.format.schema import inner_rows, shard_rows
from trainhooks.store.format.shards import Shard, ShardShape
from trainhooks.store.reading.block_reader import read_snapshots
from trainhooks.store.reading.consistent import READ_ATTEMPTS, read_consistently
from trainhooks.store.reading.snapshots import Snapshots
from trainhooks.store.storage.base import Storage
from trainhooks.store.storage.lock import holder_of
from trainhooks.store.storage.opening import open_storage
from trainhooks.store.storage.zarr_store import ManifestStore, open_array, read_array

if TYPE_CHECKING:
    import pandas
    import xarray


def open_store(path: str | Path | Storage, *, follow: bool = False) -> Store:
    """Open a store for reading, also while a run writes it: the result is its state at this moment.

    With `follow=True` it goes along with a running writer: asking for `steps` or `complete` looks again, and what is
    read afterwards is as of that look.

    Raises StoreError where there is no store at `path`, or one of another format, or a damaged one.
    """
    return Store(open_storage(path), follow=follow)


class Store:
    """A run, read only: its records, its snapshots, its provenance. Made by `open_store`.

    `steps` [record] and `snapshot_steps` [snapshot] are int64. `store[name]` is a metric [record, ...], NaN (whole
    numbers: -1) where it was not measured. `snapshots` is the sequence of output embeddings.
    """

    def __init__(self, storage: Storage, *, follow: bool = False) -> None:
        self.where = str(storage)
        self.path = Path(self.where)
        self._zarr = ManifestStore(storage)
        self._follow = follow
        self._seen: tuple[object, ...] | None = None
        self._check_files()
        self.refresh()

    def _check_files(self) -> None:
        """Look once whether all that counts is there; a running writer may replace it meanwhile."""
        for _ in range(READ_ATTEMPTS):
            root = read_root(self._zarr.storage)
            try:
                check_files(self._zarr.storage, root)
                return
            except StoreError:
                if read_root(self._zarr.storage).manifest == root.manifest:
                    raise

    def refresh(self) -> bool:
        """Look again: what was written since counts from now on. Returns whether there was anything new.

        Raises StoreError as `open_store` does.
        """
        root, files, listed = read_consistently(self._zarr.storage)
        check_claims(self._zarr.storage, root, waiting=len(files))
        seen = (root.manifest, root.attempt, root.complete, root.dropped, tuple(file.piece.key for file in files))
        if seen == self._seen:
            return False
        self._root, self._layout = root, root.layout
        self._zarr.files = listed
        self.__dict__.pop("sketch", None)
        steps, snapshot_steps = self._folded(STEP), np.empty(0, dtype=np.int64)
        if self._layout.snapshots:
            snapshot_steps = self._folded(SNAPSHOT_STEP)
        folded = int(max(steps, default=-1)), int(max(snapshot_steps, default=-1))
        opened = {file.piece.key: file for file in files}
        entries = complete_entries([file.piece for file in files], root.restarts, folded)
        check_chain([opened[entry.pieces[0].key] for entry in entries], steps, where=self.where)
        waiting = [JournalRecord(e, [opened[piece.key] for piece in e.pieces], root.layout) for e in entries]
        self._journal = [record for record in waiting if record.entry.step > folded[0]]
        self._snapshot_journal = [r for r in waiting if r.entry.has_snapshot and r.entry.step > folded[1]]
        self._steps = np.concatenate([steps, _steps(self._journal)])
        self.snapshots = Snapshots(
            partial(self._read, SNAPSHOT) if self._layout.snapshots else None,
            steps=np.concatenate([snapshot_steps, _steps(self._snapshot_journal)]),
            journal=self._snapshot_journal,
            block=self._layout.block,
            shape=(self._layout.vocab, self._layout.dim),
            read=partial(read_snapshots, self._zarr.storage, self._layout),
            check=partial(check_attempt, self._zarr.storage, root.attempt),
        )
        self._seen = seen
        return True

    @property
    def steps(self) -> Int64[np.ndarray, "record"]:
        """The steps of all records."""
        if self._follow:
            self.refresh()
        return self._steps

    @property
    def snapshot_steps(self) -> Int64[np.ndarray, "snapshot"]:
        """The steps that have a matrix."""
        return self.snapshots.steps

    @property
    def vocab(self) -> int:
        """Rows of the output embedding."""
        return self._layout.vocab

    @property
    def dim(self) -> int:
        """Columns of the output embedding."""
        return self._layout.dim

    @property
    def groups(self) -> tuple[str, ...]:
        """The parameter groups, in the order of the `group` dimension."""
        return self._layout.groups

    @property
    def layout(self) -> Layout:
        """What the store holds: shapes, variables, precision. Counts and texts of tokens have readers of their own."""
        return self._layout

    @property
    def precision(self) -> str | int:
        """ "float32", "bfloat16", or the mantissa bits that matrices keep."""
        return self._layout.precision

    @property
    def sketch_size(self) -> int:
        """Numbers a sketch has for each group; 0 where the store keeps none."""
        return self._layout.sketch_size

    @property
    def complete(self) -> bool:
        """Whether the writer has closed the store since its last record."""
        if self._follow:
            self.refresh()
        return self._root.complete

    @property
    def dropped(self) -> int:
        """Records that a full queue turned away, up to the last fold."""
        return self._root.dropped

    @property
    def waiting(self) -> int:
        """Records that lie in the journal and are not folded yet."""
        return len(self._journal)

    @property
    def holder(self) -> str | None:
        """Who writes the store now; None where nobody does."""
        holder = holder_of(self._zarr.storage)
        return None if holder is None else str(holder)

    @property
    def profile(self) -> str | None:
        """The codec profile of the first shard by its own word; None where nothing is folded."""
        if not (self._layout.snapshots and self._root.snapshots):
            return None
        key = f"{SNAPSHOT}/c/0/0/0"
        size = ShardShape(self._layout.block, shard_rows(self._layout), self._layout.dim, inner_rows(self._layout))
        shard = Shard(self._zarr.storage.mmap(key), shape=size, where=f"{self.where}/{key}")
        return next((name for name, profile in PROFILES.items() if shard.made_by(profile)), None)

    @property
    def disk_bytes(self) -> int:
        """Bytes of all its files."""
        return self._zarr.storage.size()

    @property
    def attributes(self) -> dict[str, Any]:
        """The provenance that the run gave."""
        return dict(self._root.provenance)

    @property
    def kept(self) -> list[str]:
        """What cuts took from the store and is kept aside until the run has come past it: a line each."""
        storage = self._zarr.storage
        return [f"{branch}. {branch.remedy(storage)}" for branch in kept_branches(storage, self._root)]

    @property
    def restarts(self) -> list[dict[str, Any]]:
        """Each resumption: attempt, restart_step, records kept, and the provenance that changed."""
        return [restart.to_json() for restart in self._root.restarts]

    @property
    def gaps(self) -> list[dict[str, Any]]:
        """What was lost before a checkpoint: the attempt that went on, and after and up to which step."""
        return [asdict(gap) for gap in self._root.gaps]

    @property
    def names(self) -> list[str]:
        """The metrics' names, as declared."""
        return [variable.name for variable in self._layout.variables]

    def __getitem__(self, name: str) -> np.ndarray:
        """A metric [record, ...]. Raises KeyError for a name that was not declared."""
        variable = self._variable(name)
        return self._rows(name, self._layout.row_shape(variable), variable.dtype)

    @cached_property
    def sketch(self) -> Float32[np.ndarray, "record group sketch"]:
        """The parameter groups' sketches; NaN where a record has none.

        Raises ValueError where the store keeps no sketches.
        """
        if not self.sketch_size:
            raise ValueError(f"{self.where} keeps no sketches: it was recorded with sketch_size=0.")
        return self._rows(SKETCH, (len(self.groups), self.sketch_size), "float32")

    def sketch_parts(self) -> Iterator[Float32[np.ndarray, "part group sketch"]]:
        """The sketches of all records in order, a chunk at a time: memory does not grow with the records.

        Raises ValueError where the store keeps no sketches.
        """
        if not self.sketch_size:
            raise ValueError(f"{self.where} keeps no sketches: it was recorded with sketch_size=0.")
        array, records = self._array(SKETCH), len(self._steps) - len(self._journal)
        for start in range(0, records, array.chunks[0]):
            part = self._read(SKETCH, slice(start, min(start + array.chunks[0], records)))
            self._check_attempt()
            yield part
        for record in self._journal:
            yield stacked([record], SKETCH, (len(self.groups), self.sketch_size), "float32")

    def mapped_sketch(self) -> Float32[np.ndarray, "record group sketch"]:
        """As `sketch`, in a temporary file that is mapped and goes with the array, not in memory."""
        shape = (len(self._steps), len(self.groups), self.sketch_size)
        if not len(self._steps):
            return np.empty(shape, dtype=np.float32)
        with tempfile.TemporaryFile() as file:
            for part in self.sketch_parts():
                file.write(np.ascontiguousarray(part).data)
            file.flush()
            return np.memmap(file, dtype=np.float32, mode="c", shape=shape)

    @cached_property
    def token_counts(self) -> Int64[np.ndarray, "vocab"] | None:
        """The corpus counts, None where the run gave none."""
        return self._folded(TOKEN_COUNT) if TOKEN_COUNT in self._root.arrays else None

    @cached_property
    def token_texts(self) -> list[str] | None:
        """The tokens' text, None where the run gave none."""
        if TOKEN_TEXT not in self._root.arrays:
            return None
        return [str(text) for text in self._folded(TOKEN_TEXT)]

    def output_embedding(self, step: int | np.integer) -> Float32[np.ndarray, "vocab dim"]:
        """The matrix at `step`. Raises ValueError where that step has none."""
        return self.snapshots.at(self.position_of(step))

    def token_path(self, token: int | np.integer) -> Float32[np.ndarray, "snapshot dim"]:
        """One token's row at every snapshot. Raises ValueError for an id outside the vocabulary."""
        if not 0 <= token < self.vocab:
            raise ValueError(f"got token {token}; the output embedding has rows 0 to {self.vocab - 1}.")
        if not len(self.snapshots):
            return np.empty((0, self.dim), dtype=np.float32)
        return self.snapshots.path_of(int(token))

    def label_counts(self, step: int | np.integer) -> Int64[np.ndarray, "vocab"]:
        """Labels trained on up to `step`, by token. Raises ValueError where that step has none."""
        position = self.position_of(step)
        folded = len(self.snapshots) - len(self._snapshot_journal)
        if position < folded:
            counts = self._read(LABEL_COUNTS, position)
            self._check_attempt()
        else:
            record = self._snapshot_journal[position - folded]
            counts = stacked([record], LABEL_COUNTS, (self.vocab,), "int64")[0]
        if (counts == MISSING_COUNT).all():
            raise ValueError(f"{self.where}: no label counts were recorded with the snapshot of step {step}.")
        return counts

    def metrics(self) -> xarray.Dataset:
        """All metrics as one dataset, with `step` and `group` as coordinates and units in the attributes."""
        import xarray

        data = {
            v.name: ((STEP, *v.dims), self[v.name], {"description": v.description, "unit": v.unit})
            for v in self._layout.variables
        }
        return xarray.Dataset(data, coords={STEP: self.steps, GROUP: list(self.groups)})

    def to_xarray(self) -> xarray.Dataset:
        """Metrics, counts, texts and output embeddings [snapshot_step, token, dim], these read when they are taken."""
        from trainhooks.store.reading.to_xarray import as_dataset

        return as_dataset(self)

    def to_dataframe(self) -> pandas.DataFrame:
        """A row a record, by step: every scalar, and every metric by group as `name/group`."""
        from trainhooks.store.reading.to_xarray import as_dataframe

        return as_dataframe(self)

    @property
    def plot(self) -> Any:
        """Figures of this store: `plot()`, `plot.dynamics()`, `plot.scatter(step)` ...; matplotlib figures."""
        return accessor("plot", self)

    def __repr__(self) -> str:
        return f"<Store {shown(self.where)}: {', '.join(f'{name} {value}' for name, value in self._told())}>"

    def _repr_html_(self) -> str:
        return card(f"Store {self.where}", self._told())

    def _told(self) -> list[tuple[str, str]]:
        """What a notebook shows of it."""
        last = f" to step {self._steps[-1]:,}" if len(self._steps) else ""
        return [
            ("records", f"{len(self._steps):,}{last}"),
            ("matrices", f"{len(self.snapshots):,} of {self.vocab:,} x {self.dim}"),
            ("metrics", str(len(self.names))),
            ("complete", "yes" if self._root.complete else "no"),
        ]

    def summary(self) -> dict[str, Any]:
        """What is in the store, as plain JSON: see `trainhooks.store.reading.summary.summarize`."""
        from trainhooks.store.reading.summary import summarize

        return summarize(self, variables=self._layout.variables)

    def position_of(self, step: int | np.integer) -> int:
        """The place of a step's matrix in `snapshots`. Raises ValueError where that step has none."""
        position = int(np.searchsorted(self.snapshot_steps, step))
        if position < len(self.snapshot_steps) and self.snapshot_steps[position] == step:
            return position
        near = self.snapshot_steps[max(0, position - 1) : position + 1].tolist()
        raise ValueError(f"{self.where} has no snapshot at step {step}; the nearest are {near} (`snapshot_steps`).")

    def _variable(self, name: str) -> Variable:
        for variable in self._layout.variables:
            if variable.name == name:
                return variable
        raise KeyError(f"{self.where} has no metric {name!r}; it has {', '.join(self.names) or 'none'}")

    def _folded(self, name: str) -> np.ndarray:
        values = self._read(name, slice(None))
        self._check_attempt()
        return values

    def _check_attempt(self) -> None:
        check_attempt(self._zarr.storage, self._root.attempt)

    def _read(self, name: str, *where: slice | int) -> np.ndarray:
        return read_array(self._zarr, name, self._root.arrays[name], where)

    def _array(self, name: str) -> zarr.Array[Any]:
        return open_array(self._zarr, name, self._root.arrays[name])

    def _rows(self, name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        return np.concatenate([self._folded(name), stacked(self._journal, name, shape, dtype)])


def _steps(records: list[JournalRecord]) -> np.ndarray:
    return np.array([record.entry.step for record in records], dtype=np.int64)
