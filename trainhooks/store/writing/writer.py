"""Writing a store: append records, finish the run, close. Everything here happens in the caller's thread."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from trainhooks.core.threads import elsewhere
from trainhooks.store.errors import StoreError
from trainhooks.store.format.arrays import write_metadata
from trainhooks.store.format.chunks import write_rows
from trainhooks.store.format.integrity import unlisted_chunks
from trainhooks.store.format.journal import (
    JournalEntry,
    JournalRecord,
    clean,
    complete_entries,
    drop_cut_short,
    list_pieces,
    write_piece,
)
from trainhooks.store.format.kept import drop_passed, kept_branches
from trainhooks.store.format.layout import SNAPSHOT, SNAPSHOT_STEP, STEP, Layout
from trainhooks.store.format.root import Root, commit, read_root
from trainhooks.store.format.validation import missing_value, record_arrays, rounded, whole_run_arrays
from trainhooks.store.storage.base import JOURNAL, Storage
from trainhooks.store.storage.fence import FencedStorage
from trainhooks.store.storage.lock import Lock
from trainhooks.store.storage.opening import open_storage
from trainhooks.store.storage.zarr_store import ManifestStore
from trainhooks.store.writing.fold import fold_records, fold_snapshots
from trainhooks.store.writing.fold_progress import FoldProgress
from trainhooks.store.writing.lifecycle import MODES, create, folded_steps, is_taken, resume

Values = Mapping[str, np.ndarray | np.generic | float | int]


class StoreWriter:
    """Writes one run's store at `path`, a folder (or a `Storage`); a record is durable when `append` returns.

    `mode` is "create" (nothing may be there), "overwrite" (replaces a store, and nothing but a store) or "resume"
    (goes on with one; records beyond `restart_step` are cut, None keeps all, and the restart is noted). `recorded` is
    the last record that the run had made by then: where the store ends before it, the gap is noted, too.
    `durability` is "process" (survives the process' death) or "power" (files are synced). `pieces` is the number of
    ranks that write each record: this one writes piece 0, each other one its own by a `PieceWriter`. `threads`
    compress while a block is folded.

    A record lies in the journal until its block is full, then it is folded into the Zarr arrays. A store has one
    writer: it is locked until `close`, or until the writer is collected. Before each file gets its name, the writer
    looks whether the lock is still its own: one that stood still while another took over changes nothing.

    One thread may be in `journal` while another is in `fold`, and neither holds a lock in Python code: a signal handler
    may raise anywhere.

    Raises StoreError where the path cannot be used so or another writer has it, ValueError for arguments that make
    no sense.
    """

    def __init__(
        self,
        path: str | Path | Storage,
        layout: Layout,
        *,
        mode: str = "create",
        restart_step: int | np.integer | None = None,
        recorded: int | None = None,
        durability: str = "process",
        pieces: int = 1,
        threads: int = 1,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode {mode!r} is not known; use one of {', '.join(MODES)}.")
        if restart_step is not None and mode != "resume":
            raise ValueError(f'restart_step={restart_step} needs mode="resume", got mode={mode!r}.')
        if restart_step is not None:
            restart_step = _whole_step(restart_step)
        if min(pieces, threads) < 1:
            raise ValueError(f"got pieces={pieces} and threads={threads}; both must be 1 or more.")
        self.storage: Storage = open_storage(path, durability=durability)
        self.path = Path(str(self.storage))
        self.layout = layout
        self._pieces = pieces
        self.progress = FoldProgress(threads=threads)
        self._journal_bytes = 0
        self._finishing = self._finished = self._closed = False
        self._pending: dict[str, JournalEntry] = {}  # by its first file: one thread adds while another takes away
        self._fitting: dict[str, JournalEntry] = {}  # of several pieces, which fit together
        self._last = -1
        self.dropped = 0
        try:
            with self._disk("open"):
                elsewhere(lambda: self._open(mode, restart_step, recorded))
        except BaseException:
            self._closed = True
            if hasattr(self, "_lock"):
                self._lock.release()
            raise

    def _open(self, mode: str, restart_step: int | None, recorded: int | None) -> None:
        if mode == "resume":
            read_root(self.storage)
        else:
            is_taken(self.storage, overwrite=mode == "overwrite")
        self.storage.create()
        self._lock = Lock(self.storage)
        if self._closed:  # given up while it was waited for: nothing is touched any more
            self._lock.release()
            return
        self.storage = FencedStorage(self.storage, self._lock.confirm)
        drop_cut_short(self.storage)  # with them goes what a writer that stands still would have renamed when it wakes
        self._root: Root
        self._store: ManifestStore
        if mode == "resume":
            self._root, self._store = resume(self.storage, self.layout, restart_step=restart_step, recorded=recorded)
        else:
            self._root, self._store = create(self.storage, self.layout, overwrite=mode == "overwrite")
        self.dropped = self._root.dropped
        self._folded_step, self._folded_snapshot = (
            int(max(folded_steps(self._store, self._root, name), default=-1)) for name in (STEP, SNAPSHOT_STEP)
        )
        self._take_up(self._whole_entries())
        clean(self.storage, keep=tuple(self._pending.values()))
        self._last = max([self._folded_step, *(entry.step for entry in self._pending.values())])
        self._kept = kept_branches(self.storage, self._root) if mode == "resume" else []
        self.fold()
        if self._closed:  # given up meanwhile
            self._lock.release()

    @property
    def place(self) -> Storage:
        """`storage`, by its name of before."""
        return self.storage

    @property
    def bytes_written(self) -> int:
        """Bytes given to the place so far: journal, arrays and metadata, rewritten ones again."""
        return self._journal_bytes + self._store.bytes_written

    @property
    def last_step(self) -> int | None:
        """The step of the last record written, None where there is none."""
        return None if self._last < 0 else self._last

    @property
    def durable_step(self) -> int | None:
        """The last step up to which every record is durable, all its pieces in place; None where there is none."""
        if self._pieces == 1:
            return self.last_step
        entries, _ = self._whole_entries()
        last = max([self._folded_step, *(entry.step for entry in entries)])
        return None if last < 0 else last

    @property
    def attempt(self) -> int:
        """0, and one more at each resumption; other ranks' pieces carry it."""
        return self._root.attempt

    def append(
        self,
        step: int | np.integer,
        values: Values,
        *,
        sketch: np.ndarray | None = None,
        snapshot: np.ndarray | None = None,
        label_counts: np.ndarray | None = None,
        rows: tuple[int, int] | None = None,
    ) -> None:
        """Add the record of `step`, which must lie beyond the last one; it is durable when this returns.

        `values` has an array for each variable that was measured, shaped as declared; missing ones read as NaN
        (whole numbers: -1). `sketch` is [group, sketch_bucket]; `snapshot` [vocab, dim] is float32 and is
        rounded here to the layout's precision, or uint16, the bits of bfloat16 (see `record_arrays`); `label_counts`
        [vocab] are kept beside a snapshot and nowhere else. Where several ranks write, `snapshot` holds the rows `rows`
        (start, stop), and sketches and counts add up.

        Raises ValueError, and writes nothing, where the record does not fit the layout or comes after `finish`;
        StoreError where the disk refuses.
        """
        step = self.check_step(step)
        arrays = record_arrays(
            self.layout, values, sketch=sketch, snapshot=snapshot, label_counts=label_counts, rows=rows
        )
        self.journal(step, arrays, rows=rows)
        self.fold()

    def check_step(self, step: int | np.integer, *, last: int | None = None) -> int:
        """The step as an int. Raises ValueError where the run has ended, or the step is not beyond the last one.

        `last` is the last step where it is not written yet.
        """
        step = operator.index(step)
        if self._closed or self._finished:
            raise ValueError(f"the run in {self.storage} has ended; open it with mode='resume' to add records.")
        last = self.last_step if last is None else last
        if not 0 <= step < 1 << 63 or (last is not None and step <= last):
            raise ValueError(f"got step {step}; steps are 0 or more and increase, and the last one is {last}.")
        return step

    def journal(self, step: int, arrays: Mapping[str, np.ndarray], *, rows: tuple[int, int] | None = None) -> None:
        """Make a checked record (or this rank's piece of it) durable, and fold nothing."""
        self._lock.check()
        has_snapshot = SNAPSHOT in arrays
        with self._disk(f"write step {step} to"):
            piece, size = write_piece(
                self.storage,
                rounded(self.layout, arrays),
                step=step,
                attempt=self.attempt,
                pieces=self._pieces,
                rows=(rows or (0, self.layout.vocab)) if has_snapshot else None,
                previous=self.last_step,
                has_snapshot=has_snapshot,
            )
        self._journal_bytes += size
        if self._pieces == 1:
            self._pending[piece.key] = JournalEntry(step, self.attempt, has_snapshot, (piece,))
        self._last = step

    @property
    def backlog(self) -> int:
        """Records in the journal that wait to be folded."""
        return len(self._pending)

    def fold(self, *, whole: bool = False) -> None:
        """Fold the blocks that are full (`whole`: everything), commit, and delete what the journal need not keep.

        One thread at a time; another one may go on with `journal`. Raises StoreError where the disk refuses: the
        journal then still has what was not folded.
        """
        if self._pieces > 1:
            self._take_up(self._whole_entries())
        pending = list(self._pending.values())
        block, snapshots = self.layout.block, self._root.snapshots
        unfolded = [entry for entry in pending if entry.step > self._folded_step]
        waiting = [entry for entry in pending if entry.has_snapshot and entry.step > self._folded_snapshot]
        if not whole:
            # a block that was closed before it was full is written anew once: when it is full
            waiting = waiting[: max(0, (snapshots + len(waiting)) // block * block - snapshots)]
        if not waiting and (not unfolded or (len(unfolded) < block and not whole)):
            return
        last = pending[-1].step
        with self._disk(f"fold step {last} into the arrays of"):
            self._fold(unfolded, waiting)
        self._folded_step = max([self._folded_step, *(entry.step for entry in unfolded)])
        self._folded_snapshot = max([self._folded_snapshot, *(entry.step for entry in waiting)])
        self._forget(pending)
        if self._kept:
            self._kept = drop_passed(self.storage, self._kept, reached=self._folded_step)

    def _fold(self, unfolded: Sequence[JournalEntry], waiting: Sequence[JournalEntry]) -> None:
        grown: dict[str, dict[str, Any]] = {}
        # once for both: each file's checksum is compared when it is first read
        opened = {
            entry: JournalRecord.open(self.storage, entry, self.layout) for entry in sorted({*unfolded, *waiting})
        }
        if waiting:
            start = self._root.snapshots
            grown |= fold_snapshots(
                self._store,
                self._root.arrays,
                self.layout,
                [opened[entry] for entry in waiting],
                start=start,
                progress=self.progress,
            )
        # records go along with snapshots, so that every snapshot's step is among the steps
        if unfolded:
            records = [opened[entry] for entry in unfolded]
            grown |= fold_records(self._store, self._root.arrays, self.layout, records, start=self._root.records)
        for name, metadata in grown.items():
            write_metadata(self._store, name, metadata)
        self._commit(replace(self._root, arrays={**self._root.arrays, **grown}, complete=False))

    def _forget(self, entries: Sequence[JournalEntry]) -> None:
        """Delete those entries of which everything is folded."""
        done = [entry for entry in entries if not self._waits(entry)]
        with self._disk("delete folded records of"):
            for entry in done:
                self._pending.pop(entry.pieces[0].key, None)
                for piece in entry.pieces:
                    self.storage.delete(piece.key)

    def _waits(self, entry: JournalEntry) -> bool:
        return entry.step > self._folded_step or (entry.has_snapshot and entry.step > self._folded_snapshot)

    def _whole_entries(self) -> tuple[list[JournalEntry], StoreError | None]:
        """What is whole in the journal, up to a record that is not; and what is wrong with that one, if anything."""
        pieces = list_pieces(self.storage)
        folded = self._folded_step, self._folded_snapshot  # after the listing: what was folded meanwhile is in it
        found = complete_entries(pieces, self._root.restarts, folded)
        for number, entry in enumerate(found):
            if len(entry.pieces) == 1 or self._fitting.get(entry.pieces[0].key) == entry:
                continue
            try:
                JournalRecord.open(self.storage, entry, self.layout).check_rows(self.layout.vocab)
            except FileNotFoundError:  # folded meanwhile
                continue
            except StoreError as error:
                return found[:number], error
            self._fitting[entry.pieces[0].key] = entry
        return found, None

    def _take_up(self, found: tuple[list[JournalEntry], StoreError | None]) -> None:
        """Let these records wait to be folded. Raises what is wrong with the one behind them."""
        entries, misfit = found
        if misfit is not None:
            raise misfit
        self._pending = {entry.pieces[0].key: entry for entry in entries}
        self._fitting = {key: entry for key, entry in self._fitting.items() if key in self._pending}

    def finish(self, values: Mapping[str, np.ndarray]) -> None:
        """Write the whole-run variables, [records, ...] each; those left out stay NaN. No record may follow.

        Raises ValueError where a name or shape does not fit, or after `close`; StoreError where the disk refuses.
        """
        if self._closed:
            raise ValueError(f"the store {self.storage} is closed; call finish() before close().")
        if self._pieces > 1:
            self._take_up(self._whole_entries())
        records = self._root.records + sum(1 for entry in self._pending.values() if entry.step > self._folded_step)
        arrays = whole_run_arrays(self.layout, values, records=records)
        self.fold(whole=True)
        self._finishing = True
        with self._disk("finish"):
            for name, array in arrays.items():
                write_rows(self._store, name, self._root.arrays[name], array, start=0)
            self._commit(self._root)
        self._finished = True

    def close(self) -> None:
        """Fold what is left in the journal, mark the store complete, and let it go. May be called again.

        Raises StoreError where the disk refuses; the journal then still has what was not folded.
        """
        if self._closed:
            return
        self.fold(whole=True)
        with self._disk("close"):
            self._settle()
            self._commit(replace(self._root, complete=True))
            self.storage.tidy(JOURNAL)
        self.release()

    def _settle(self) -> None:
        """Before the store is called complete: finish what an interrupted `fold` or `finish` of this writer left."""
        if self._finishing and not self._finished:  # some of its numbers are there, others not: none is what is said
            for variable in self.layout.variables:
                if variable.whole_run:
                    shape = (self._root.records, *self.layout.row_shape(variable))
                    missing = np.full(shape, missing_value(variable.dtype), dtype=variable.dtype)
                    write_rows(self._store, variable.name, self._root.arrays[variable.name], missing, start=0)
        for key in list(unlisted_chunks(self._root, self._store.files)):
            self._store.relist(key)

    def release(self) -> None:
        """Let the store go as it is: the journal keeps what is not folded, and the store is not complete."""
        self._closed = True
        self._lock.release()

    abandon = release  # by its name of before

    def _commit(self, root: Root) -> None:
        self._lock.confirm()
        before = self._root.manifest
        self._root, size = commit(self.storage, replace(root, dropped=self.dropped), self._store.files)
        self._store.bytes_written += size
        if before != self._root.manifest:
            self.storage.delete(before)

    @contextmanager
    def _disk(self, action: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"cannot {action} the store {self.storage}: {error}. Check that the folder is writable and the disk "
                "has room; acknowledged records are safe in the store."
            ) from error


def _whole_step(step: int | np.integer) -> int:
    whole = int(operator.index(step))
    if not 0 <= whole < 1 << 63:
        raise ValueError(f"got restart_step={step!r}; steps are 0 or more and below 2^63. Nothing was changed.")
    return whole
