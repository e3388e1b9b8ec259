"""Whether every byte of a store is as it was written, what an interruption left, and what can be recovered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from trainhooks.store.errors import StoreError
from trainhooks.store.format.compaction_note import NOTE, replacing
from trainhooks.store.format.integrity import Files, check_claims, fits, metadata_damaged, unlisted_chunks
from trainhooks.store.format.journal import JournalPiece, Piece, check_chain, complete_entries, list_pieces, survives
from trainhooks.store.format.kept import kept_branches
from trainhooks.store.format.layout import SNAPSHOT, SNAPSHOT_STEP, STEP
from trainhooks.store.format.precision import unpack
from trainhooks.store.format.root import METADATA, SPARE, read_manifest, read_root, spare_is_torn
from trainhooks.store.format.schema import inner_rows, shard_rows
from trainhooks.store.format.shards import Shard, ShardShape
from trainhooks.store.reading.proof import is_newer
from trainhooks.store.storage.base import JOURNAL, LOCK, TEMPORARY, Storage
from trainhooks.store.storage.checksum import unsealed
from trainhooks.store.storage.lock import holder_of, is_garbled
from trainhooks.store.storage.opening import open_storage
from trainhooks.store.storage.zarr_store import ManifestStore, read_array

_ATTEMPTS = 5


@dataclass(frozen=True)
class StoreFinding:
    """One file, what is the matter with it, and what can be done."""

    key: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.key}: {self.what}. {self.remedy}"


@dataclass(frozen=True)
class Verified:
    """What `verify` found. `problems` are damage; `notes` are what a killed run leaves, gaps and NaN: nothing is lost.

    `last_step` is the last record's that counts (None: there is none), `journal` the records that are not folded.
    """

    path: str
    files: int = 0
    complete: bool = False
    last_step: int | None = None
    journal: int = 0
    problems: tuple[StoreFinding, ...] = ()
    notes: tuple[StoreFinding, ...] = ()

    @property
    def sound(self) -> bool:
        """Whether nothing is damaged."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        kept = {name: getattr(self, name) for name in ("path", "files", "complete", "last_step", "journal", "sound")}
        return kept | {
            name: [{"file": one.key, "what": one.what, "remedy": one.remedy} for one in getattr(self, name)]
            for name in ("problems", "notes")
        }


def verify(path: str | Path | Storage) -> Verified:
    """Read every file of a store and compare it with what was written; changes nothing.

    Sizes and checksums of all files, metadata too; the checksum of every chunk; the journal's records; steps that seem
    to be left out; rows with NaN; what an interrupted write, fold, compaction or cut left behind.

    Raises StoreError where there is no store of this format at all; a damaged one is reported, not raised.
    """
    storage = open_storage(path)
    if not (storage.exists(METADATA) or storage.exists(SPARE)):
        raise StoreError(f"no store at {storage}: it has no {METADATA}. Check the path.")
    try:
        look = _Look(storage)
        found = look.all()
        for _ in range(_ATTEMPTS):
            if found.sound or not look.outdated():
                return found
            # whoever writes has replaced some of what was just read: judge that again by what counts now
            look = _Look(storage, again=None if look.restarted() else found)
            found = look.all()
    except StoreError as error:
        why = StoreFinding(METADATA, str(error), "Nothing can be read without it; the chunks may be whole")
        return Verified(str(storage), problems=(why,))
    return _unjudged(found) if look.outdated() else found


def _unjudged(found: Verified) -> Verified:
    """What a running writer replaced each time before it could be compared is no damage, and not known to be whole."""
    notes = (
        StoreFinding(
            one.key, f"could not be judged, it was replaced meanwhile ({one.what})", "Look again when the run ended"
        )
        for one in found.problems
    )
    return replace(found, problems=(), notes=(*found.notes, *notes))


class _Look:
    """One pass over a store whose root is whole; with `again`, over what an earlier pass called damaged.

    The journal is opened before the root is read, as readers do: a record that is folded meanwhile is in both. Raises
    StoreError where the root is damaged.
    """

    def __init__(self, storage: Storage, again: Verified | None = None) -> None:
        self.storage, self._again = storage, again
        self.problems: list[StoreFinding] = []
        self.notes: list[StoreFinding] = [] if again is None else list(again.notes)
        self._judged = None if again is None else {problem.key for problem in again.problems}
        self.holder = holder_of(storage)
        self._pieces = self._open_pieces()
        self.root = read_root(storage)

    def outdated(self) -> bool:
        """Whether there was a commit since the pass began. Raises StoreError as `read_root`."""
        return read_root(self.storage).manifest != self.root.manifest

    def restarted(self) -> bool:
        """Whether the store was cut since the pass began. Raises StoreError as `read_root`."""
        return read_root(self.storage).attempt != self.root.attempt

    def all(self) -> Verified:
        if self.holder is not None and self._again is None:
            self._note(LOCK, f"{self.holder} writes this store", "Look again when it has ended")
        if is_garbled(self.storage) and self._again is None:
            self._note(LOCK, "is damaged: it names nobody", "--repair takes it over where nobody writes for a minute")
        if spare_is_torn(self.storage) and self._again is None:
            self._problem(SPARE, "is damaged: the root's spare copy", "--repair writes it anew; nothing else needs it")
        for gap in self.root.gaps:
            self._note(METADATA, str(gap), "Nothing else is missing; a run from an older checkpoint makes them again")
        for branch in kept_branches(self.storage, self.root):
            self._note(branch.name, str(branch), branch.remedy(self.storage))
        try:
            check_claims(self.storage, self.root, waiting=len(self._pieces))
        except StoreError as error:
            self._problem(METADATA, str(error), "Nothing is read by such claims")
            return Verified(str(self.storage), problems=tuple(self.problems), notes=tuple(self.notes))
        files = self._files()
        for key in sorted(files if self._judged is None else self._judged & files.keys()):
            self._file(key, files)
        whole = self._whole_pieces()
        if self._again is None:
            self._leftovers(files)
        steps, journal = self._steps(whole)
        last = int(steps[-1]) if len(steps) else None
        return Verified(
            str(self.storage),
            len(files),
            self.root.complete,
            last,
            journal,
            tuple(self.problems),
            tuple(dict.fromkeys(self.notes)),
        )

    def _open_pieces(self) -> list[JournalPiece]:
        opened = []
        for piece in list_pieces(self.storage):
            try:
                opened.append(JournalPiece(self.storage, piece))
            except FileNotFoundError:
                continue  # a running writer has folded it; the root that is read after this knows its record
            except StoreError as error:
                self._problem(piece.key, f"step {piece.step} is torn: {error}", "--repair drops it")
        return opened

    def _problem(self, key: str, what: str, remedy: str) -> None:
        if self.holder is not None:
            remedy = f"End the run first. {remedy}"
        self.problems.append(StoreFinding(key, what, remedy))

    def _note(self, key: str, what: str, remedy: str) -> None:
        self.notes.append(StoreFinding(key, what, remedy))

    def _files(self) -> Files:
        """The files that count: those of the manifest, or where that is lost, those that are there."""
        try:
            files = read_manifest(self.storage, self.root)
        except (StoreError, ValueError, KeyError) as error:
            self._problem(self.root.manifest, str(error), "--repair lists it anew if that can be proven")
            return {key: (-1, "") for key in sorted(self.storage.list()) if key.partition("/")[0] in self.root.arrays}
        for key in unlisted_chunks(self.root, files):
            self._problem(key, "is not listed", "Its numbers read as missing")
        return files

    def _file(self, key: str, files: Files) -> None:
        try:
            content = self.storage.mmap(key)
        except FileNotFoundError:
            self._problem(key, "is missing", self._remedy(key))
            return
        except StoreError as error:
            self._problem(key, str(error), self._remedy(key))
            return
        if key.endswith(f"/{METADATA}"):
            if files[key][0] >= 0 and metadata_damaged(self.storage, self.root, files, key):
                self._problem(key, "does not fit its checksum", self._remedy(key))
            return
        listed = self._listed(key, content, files)
        try:
            self._chunks(key, content)
        except StoreError as error:
            self._problem(key, str(error).rstrip("."), self._remedy(key))
        else:
            if not listed:
                remedy = "Restore the file from a copy; --repair cuts the store to before it"
                self._problem(key, "is whole, and does not fit its checksum: it is of another moment", remedy)

    def _listed(self, key: str, content: memoryview, files: Files) -> bool:
        if files[key][0] < 0 or fits(content, files[key]):
            return True
        try:
            replaced = replacing(self.storage)
        except StoreError:
            replaced = {}
        if key in replaced and fits(content, replaced[key]):
            return True
        if is_newer(ManifestStore(self.storage), self.root, key):
            self._note(key, "is newer than the last commit: a fold was interrupted", "Resuming or --repair settles it")
            return True
        return False

    def _chunks(self, key: str, content: memoryview) -> None:
        """Compare every chunk's own checksum, and look for NaN. Raises StoreError."""
        name, _, index = key.partition("/c/")
        if not index:
            return
        if name != SNAPSHOT:
            unsealed(bytes(content), where=key)
            return
        layout = self.root.layout
        block, part, _ = (int(number) for number in index.split("/"))
        height = shard_rows(layout)
        shard = Shard(content, shape=ShardShape(layout.block, height, layout.dim, inner_rows(layout)), where=key)
        steps = max(0, min(layout.block, self.root.snapshots - block * layout.block))
        counts = shard.rows_with_nan(steps=steps, rows=min(height, layout.vocab - part * height))
        if counts.any():
            hit = np.flatnonzero(counts)
            what = f"{len(hit)} snapshots have rows with NaN, at most {counts.max()} of them"
            self._note(key, f"{what}, the first is number {block * layout.block + hit[0]}", "That is how they were")

    def _remedy(self, key: str) -> str:
        name, _, index = key.partition("/c/")
        if not index:
            return "--repair writes it anew from the root"
        length = int(self.root.arrays[name]["chunk_grid"]["configuration"]["chunk_shape"][0])
        first = int(index.split("/")[0]) * length
        last = min(first + length, int(self.root.arrays[name]["shape"][0])) - 1
        return f"Entries {first} to {last} of {name} are lost there; restore the file from a copy. All others are whole"

    def _whole_pieces(self) -> list[JournalPiece]:
        """The journal's pieces that are whole; the others are problems."""
        whole = []
        for file in self._pieces:
            piece = file.piece
            if self._judged is not None and piece.key not in self._judged:
                whole.append(file)
                continue
            try:
                matrix = file.arrays.get(SNAPSHOT)
            except StoreError as error:
                self._problem(piece.key, f"step {piece.step} is torn: {error}", "--repair drops it")
                continue
            try:
                file.check_fits(self.root.layout)
            except StoreError as error:  # as it was written, but not for this store: nobody but its owner drops it
                self._problem(piece.key, f"step {piece.step} does not fit the store: {error}", "--repair refuses it")
                continue
            whole.append(file)
            if matrix is not None:
                rows = np.isnan(unpack(matrix) if matrix.dtype == np.uint16 else matrix).any(axis=1).sum()
                if rows:
                    self._note(piece.key, f"{rows} rows have NaN", "That is how they were")
        return whole

    def _leftovers(self, files: Files) -> None:
        """What is there and does not count; a running writer's own files are none of it."""
        for name in self.storage.list_dir(JOURNAL):
            if Piece.of(name) is None:
                self._note(f"{JOURNAL}/{name}", "is no part of the store", "Delete it if you did not put it there")
        if self.holder is not None:
            return
        if self.storage.exists(NOTE):
            self._note(NOTE, "a compaction was interrupted", "Compacting again, resuming or --repair settles it")
        for name in self.storage.list_dir():
            if name.endswith(TEMPORARY):
                self._note(name, "its writing was cut short; it never counted", "--repair deletes it")
        stray = [key for key in self.storage.list() if key not in files and key.partition("/")[0] in self.root.arrays]
        for key in sorted(stray):
            self._note(key, "is not listed: a fold or a cut was interrupted", "Resuming or --repair settles it")

    def _steps(self, whole: list[JournalPiece]) -> tuple[np.ndarray, int]:
        """The steps of all records that count, and how many of them wait in the journal."""
        try:
            folded, snapshots = self._folded(STEP), self._folded(SNAPSHOT_STEP)
        except StoreError:  # said already: the chunk is damaged
            return np.empty(0, dtype=np.int64), len(whole)
        ends = int(max(folded, default=-1)), int(max(snapshots, default=-1))
        opened = {file.piece.key: file for file in whole}
        pieces = [file.piece for file in whole]
        entries = [entry for entry in complete_entries(pieces, self.root.restarts, ends) if entry.step > ends[0]]
        counted = {entry.step for entry in entries} | set(folded.tolist())
        for step in sorted({p.step for p in pieces if survives(p, self.root.restarts)} - counted):
            key, what = f"{JOURNAL} of step {step}", "is not whole, or behind one that is not"
            if self.holder is None:
                self._problem(key, what, "--repair drops it")
            else:
                self._note(key, f"{what}: a rank may be writing it", "Look again when the run has ended")
        try:
            check_chain([opened[entry.pieces[0].key] for entry in entries], folded, where=JOURNAL)
        except StoreError as error:
            self._problem(JOURNAL, str(error), "--repair goes on without them")
        steps = np.concatenate([folded, np.array([entry.step for entry in entries], dtype=np.int64)])
        if len(steps) > 1 and not (np.diff(steps) > 0).all():
            self._problem(STEP, "steps do not increase", "Restore the store from a copy")
        for before, after in gaps(steps):
            why = f"; {self.root.dropped} records were dropped by a full queue" if self.root.dropped else ""
            self._note(STEP, f"there is nothing between {before} and {after}{why}", "The schedule may have it so")
        return steps, len(entries)

    def _folded(self, name: str) -> np.ndarray:
        if name not in self.root.arrays or not self.root.arrays[name]["shape"][0]:
            return np.empty(0, dtype=np.int64)
        store = ManifestStore(self.storage)
        return read_array(store, name, self.root.arrays[name])


def gaps(steps: np.ndarray) -> Iterator[tuple[int, int]]:
    """Pairs of neighbouring steps that lie further apart than the pairs before and behind them."""
    apart = np.diff(steps)
    for i in range(1, len(apart) - 1):
        if apart[i] > apart[i - 1] and apart[i] > apart[i + 1]:
            yield int(steps[i]), int(steps[i + 1])
