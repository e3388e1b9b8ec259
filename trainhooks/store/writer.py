"""Writing a store: append records, finish the run, close."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from trainhooks.store.errors import StoreError
from trainhooks.store.files import DurableStore
from trainhooks.store.fold import fold_records, fold_snapshots, growing_names, open_arrays, snapshot_names
from trainhooks.store.journal import Entry, clean, scan, write_entry
from trainhooks.store.layout import SNAPSHOT_STEP, STEP, Layout
from trainhooks.store.opening import MODES, create, folded_steps, resume
from trainhooks.store.record import record_arrays, whole_run_arrays
from trainhooks.store.root import JOURNAL, Root, array_metadata, commit


class StoreWriter:
    """Writes one run's store at `path`; everything is on disk when a method returns.

    `mode` is "create" (nothing may be there), "overwrite" (replaces a store, and nothing but a store) or "resume"
    (goes on with one; records beyond `restart_step` are cut, None keeps all, and the restart is noted).
    A record lies in the journal until its block is full, then it is folded into the Zarr arrays.

    Raises StoreError where the path cannot be used so, ValueError for arguments that make no sense.
    """

    def __init__(
        self, path: str | Path, layout: Layout, *, mode: str = "create", restart_step: int | None = None
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode {mode!r} is not known; use one of {', '.join(MODES)}.")
        if restart_step is not None and mode != "resume":
            raise ValueError(f'restart_step={restart_step} needs mode="resume", got mode={mode!r}.')
        self.path = Path(path)
        self.layout = layout
        self._bytes = 0
        self._finished = self._closed = False
        self._store = DurableStore(self.path)
        self._root: Root
        with self._disk("open"):
            if mode == "resume":
                self._root = resume(self.path, layout, self._store, restart_step=restart_step)
            else:
                self._root = create(self.path, layout, self._store, overwrite=mode == "overwrite")
            self._arrays = open_arrays(self._store, layout)
            self._folded_step, self._folded_snapshot = (
                int(max(folded_steps(self._store, self._root, name), default=-1)) for name in (STEP, SNAPSHOT_STEP)
            )
            self._keep_waiting(scan(self.path, self._root.restarts))
            self._fold(whole=False)

    @property
    def bytes_written(self) -> int:
        """Bytes given to the file system so far: journal, arrays and metadata, rewritten ones again."""
        return self._bytes + self._store.bytes_written

    @property
    def last_step(self) -> int | None:
        """The step of the last record, None where there is none."""
        last = max([self._folded_step, *(entry.step for entry in self._pending)])
        return None if last < 0 else last

    def append(
        self,
        step: int | np.integer,
        values: Mapping[str, np.ndarray | np.generic | float | int],
        *,
        sketch: np.ndarray | None = None,
        snapshot: np.ndarray | None = None,
        label_counts: np.ndarray | None = None,
    ) -> None:
        """Add the record of `step`, which must lie beyond the last one; it is durable when this returns.

        `values` has an array for each variable that was measured, shaped as declared; missing ones read as NaN
        (whole numbers: -1). `sketch` is [group, sketch]; `snapshot` is float32 [vocab, dim] and is rounded here to
        the layout's precision; `label_counts` [vocab] are kept beside a snapshot and nowhere else.

        Raises ValueError, and writes nothing, where the record does not fit the layout or comes after `finish`;
        StoreError where the disk refuses.
        """
        step = operator.index(step)
        if self._closed or self._finished:
            raise ValueError(f"the run in {self.path} has ended; open it with mode='resume' to add records.")
        last = self.last_step
        if step < 0 or (last is not None and step <= last):
            raise ValueError(f"got step {step}; steps are 0 or more and increase, and the last one is {last}.")
        arrays = record_arrays(self.layout, values, sketch=sketch, snapshot=snapshot, label_counts=label_counts)
        with self._disk(f"write step {step} to"):
            entry, size = write_entry(self.path, arrays, step=step, attempt=self._root.attempt)
            self._bytes += size
            self._pending.append(entry)
        with self._disk(f"fold step {step} into the arrays of"):
            self._fold(whole=False)

    def finish(self, values: Mapping[str, np.ndarray]) -> None:
        """Write the whole-run variables, [records, ...] each; those left out stay NaN. No record may follow.

        Raises ValueError where a name or shape does not fit, or after `close`; StoreError where the disk refuses.
        """
        if self._closed:
            raise ValueError(f"the store {self.path} is closed; call finish() before close().")
        records = self._root.records + len(self._unfolded())
        arrays = whole_run_arrays(self.layout, values, records=records)
        with self._disk("finish"):
            self._fold(whole=True)
            for name, array in arrays.items():
                self._arrays[name][:] = array
        self._finished = True

    def close(self) -> None:
        """Fold what is left in the journal and mark the store complete. May be called again.

        Raises StoreError where the disk refuses; the journal then still has what was not folded.
        """
        if self._closed:
            return
        with self._disk("close"):
            self._fold(whole=True)
            self._commit(complete=True)
            with suppress(OSError):  # a stranger's file in there is no reason to fail: everything is folded
                (self.path / JOURNAL).rmdir()
        self._closed = True

    def _unfolded(self) -> list[Entry]:
        return [entry for entry in self._pending if entry.step > self._folded_step]

    def _fold(self, *, whole: bool) -> None:
        """Fold full blocks (`whole`: everything), commit, and delete what the journal no longer has to keep."""
        block, snapshots = self.layout.block, self._root.snapshots
        unfolded = self._unfolded()
        waiting = [entry for entry in self._pending if entry.has_snapshot and entry.step > self._folded_snapshot]
        if not whole:
            waiting = waiting[: (snapshots + len(waiting)) // block * block - snapshots]
        if not waiting and (not unfolded or (len(unfolded) < block and not whole)):
            return
        # records go along with snapshots, so that every snapshot's step is among the steps
        if unfolded:
            fold_records(self._arrays, self.layout, unfolded, start=self._root.records)
        if waiting:
            fold_snapshots(self._arrays, self.layout, waiting, start=snapshots)
        self._commit(complete=False)
        self._folded_step = max([self._folded_step, *(entry.step for entry in unfolded)])
        self._folded_snapshot = max([self._folded_snapshot, *(entry.step for entry in waiting)])
        self._keep_waiting(self._pending)

    def _keep_waiting(self, entries: Sequence[Entry]) -> None:
        """Delete all but the entries of which something is not folded yet."""
        self._pending = [
            entry
            for entry in entries
            if entry.step > self._folded_step or (entry.has_snapshot and entry.step > self._folded_snapshot)
        ]
        clean(self.path, keep=self._pending)

    def _commit(self, *, complete: bool) -> None:
        names = [*growing_names(self.layout), *snapshot_names(self.layout)]
        arrays = {**self._root.arrays, **{name: array_metadata(self.path, name) for name in names}}
        root = replace(self._root, arrays=arrays, complete=complete)
        self._bytes += commit(self.path, root)
        self._root = root

    @contextmanager
    def _disk(self, action: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"cannot {action} the store {self.path}: {error}. Check that the folder is writable and the disk "
                "has room; acknowledged records are safe in the store."
            ) from error
