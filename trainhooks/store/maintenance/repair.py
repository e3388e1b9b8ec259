"""Bringing a store that was interrupted or damaged back to its last commit, with all of its journal that is whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from trainhooks.store.errors import StoreError
from trainhooks.store.format.arrays import of_length, write_metadata
from trainhooks.store.format.compaction_note import NOTE, finish_compaction
from trainhooks.store.format.integrity import Files, chunk_length, metadata_damaged, metadata_keys, unlisted_chunks
from trainhooks.store.format.journal import JournalPiece, list_pieces
from trainhooks.store.format.layout import SNAPSHOT_STEP, STEP
from trainhooks.store.format.root import (
    METADATA,
    SPARE,
    Root,
    commit,
    drop_manifests,
    mend_spare,
    read_manifest,
    read_root,
    restore_root,
)
from trainhooks.store.reading.proof import last_chunks, misfits, shows_its_end
from trainhooks.store.storage.base import TEMPORARY, Storage
from trainhooks.store.storage.fence import FencedStorage
from trainhooks.store.storage.lock import Lock
from trainhooks.store.storage.opening import open_storage
from trainhooks.store.storage.zarr_store import ManifestStore
from trainhooks.store.writing.lifecycle import drop_beyond, folded_steps
from trainhooks.store.writing.writer import StoreWriter


def repair(path: str | Path | Storage) -> list[str]:
    """Settle what was interrupted, drop what is torn, and fold the journal; returns what was done, a line each.

    A root that is gone or damaged is replaced by its spare copy. A lock file that names nobody is watched for a minute,
    and taken over where nobody beats. Journal files that are damaged go, and what was written in part. An array's own
    metadata are written anew from the root's. A lost manifest is made anew where every chunk shows that it is whole up
    to the committed end. A chunk that is whole, but neither as committed nor what the journal adds to it, is of another
    moment: the store is cut to before it, so that records may be missing, and no number is another one than the run's.
    An interrupted compaction is finished. A run that was not closed is rolled back to its last commit and its journal
    is folded; that counts as a resumption in `restarts`, and the run can go on. Damaged chunks cannot be mended: their
    checksums go on to say so.

    Raises StoreError where the root and its spare copy are damaged, a lost manifest cannot be proven, or a writer holds
    the store.
    """
    storage = open_storage(path, durability="power")
    if not (storage.exists(METADATA) or storage.exists(SPARE)):
        read_root(storage)
    done: list[str] = []
    lock = Lock(storage, mend=True)
    held = FencedStorage(storage, lock.confirm)
    try:
        if restore_root(held):
            done.append(f"put {SPARE}, the root's spare copy, in place of {METADATA}")
        elif mend_spare(held):
            done.append(f"wrote {SPARE}, the root's spare copy, anew")
        root = read_root(held)  # as it is now that nobody else writes
        done += _drop_torn(held, root)
        store = ManifestStore(held, files=_manifest(held, root, done))
        root = _settle(store, root, done)
        root = _cut_stale(store, root, done)
        root = _restore_metadata(store, root, done)
        drop_manifests(held, but=root.manifest)
    finally:
        lock.release()
    if not root.complete or list_pieces(storage):
        before = root.records
        writer = StoreWriter(storage, replace(root.layout, attributes=root.provenance), mode="resume")
        try:
            writer.fold(whole=True)
        finally:
            writer.release()
        done.append(f"rolled back to the last commit, and folded {read_root(storage).records - before} records")
    return done


def _drop_torn(storage: Storage, root: Root) -> list[str]:
    done = []
    for name in list(storage.list_dir()):
        if name.endswith(TEMPORARY):
            storage.delete(name)
            done.append(f"deleted {name}: its writing was cut short")
    for piece in list_pieces(storage):
        if piece.attempt > root.attempt:
            storage.delete(piece.key)
            done.append(f"deleted {piece.key}: attempt {piece.attempt} began after this root was written")
            continue
        try:
            _ = JournalPiece(storage, piece).arrays
        except StoreError:
            storage.delete(piece.key)
            done.append(f"deleted {piece.key}: it was torn, step {piece.step} is lost")
    return done


def _manifest(storage: Storage, root: Root, done: list[str]) -> dict[str, tuple[int, str]]:
    try:
        return read_manifest(storage, root)
    except (StoreError, ValueError, KeyError) as error:
        files = _listed_anew(storage, root, error)
        done.append("made the manifest anew from the files that are there")
        return files


def _listed_anew(storage: Storage, root: Root, lost: Exception) -> dict[str, tuple[int, str]]:
    """Every file as it lies there. Raises StoreError where one of the chunks cannot be proven to be this root's."""
    store = ManifestStore(storage)
    for key in storage.list():
        if key.partition("/")[0] in root.arrays:
            store.relist(key)
    drop_beyond(store, root)
    cut = any(restart.restart_step is not None for restart in root.restarts)
    chunks = [key for key in sorted(store.files) if "/c/" in key]
    doubtful = chunks if cut else [key for key in chunks if not _shows_its_end(store, root, key)]
    doubtful += list(unlisted_chunks(root, store.files))
    if doubtful:
        named = ", ".join(doubtful[:5]) + (" and others" if len(doubtful) > 5 else "")
        why = "the run was cut, so older chunks may be there" if cut else "they may be older than the root"
        raise StoreError(
            f"{lost} Nothing proves that {named} are of the root's moment ({why}); nothing was changed there. "
            "Zarr readers still read the arrays as they are."
        )
    return dict(store.files)


def _shows_its_end(store: ManifestStore, root: Root, key: str) -> bool:
    try:
        return shows_its_end(store, root, key)
    except StoreError:  # its own checksum keeps saying so, whatever the manifest says
        return True


def _cut_stale(store: ManifestStore, root: Root, done: list[str]) -> Root:
    """Cut the store to before its first chunk of another moment; what the journal proves is listed as it is.

    Raises StoreError where such a chunk is of an array that is written once.
    """
    is_last, was_complete = last_chunks(root), root.complete
    lengths = {STEP: root.records, SNAPSHOT_STEP: root.snapshots}
    for key, why in misfits(store, root, lambda key: True).items():
        name = key.partition("/")[0]
        metadata = root.arrays[name]
        if why == "proven":
            store.relist(key)
            done.append(f"took {key} as it is: the journal proves what a fold added")
        elif metadata["attributes"].get("whole_run") and why in ("stale", "missing"):
            root = replace(root, complete=False)
            store.files.pop(key)
            done.append(f"{name} reads as missing: {key} is {why}")
        elif why == "stale" or (why == "missing" and is_last(key) and not root.complete):
            dims = metadata["dimension_names"][0]
            if dims not in lengths:
                raise StoreError(f"{store.storage}/{key} is of another store. Restore it from a copy.")
            first = int(key.partition("/c/")[2].split("/")[0]) * chunk_length(metadata)
            lengths[dims] = min(lengths[dims], first)
            done.append(f"{key} is {why}, of another moment than the root: {dims} is cut to {first} entries at most")
    cut = _shortened(store, root, lengths[STEP], lengths[SNAPSHOT_STEP])
    whole_run = [variable.name for variable in cut.layout.variables if variable.whole_run]
    if was_complete and not cut.complete and whole_run:
        done.append(f"the store is no longer complete: {', '.join(whole_run)} read as missing until a run ends in it")
    return cut


def _shortened(store: ManifestStore, root: Root, records: int, snapshots: int) -> Root:
    """The root with so many records and snapshots at most; no snapshot is behind the last record."""
    if (records, snapshots) == (root.records, root.snapshots):
        return root

    def shape(lengths: dict[str, int]) -> Root:
        arrays = {
            name: of_length(metadata, lengths[metadata["dimension_names"][0]])
            if metadata["dimension_names"][0] in lengths
            else metadata
            for name, metadata in root.arrays.items()
        }
        return replace(root, arrays=arrays, complete=False)

    cut = shape({STEP: records, SNAPSHOT_STEP: snapshots})
    last = max(folded_steps(store, cut, STEP), default=-1)
    snapshots = int((folded_steps(store, cut, SNAPSHOT_STEP) <= last).sum())
    cut = shape({STEP: records, SNAPSHOT_STEP: snapshots})
    drop_beyond(store, cut)
    return cut


def _settle(store: ManifestStore, root: Root, done: list[str]) -> Root:
    try:
        settled = finish_compaction(store, root)
    except StoreError:
        store.storage.delete(NOTE)
        settled = root
        done.append(f"deleted {NOTE}: it was damaged")
    if settled.manifest != root.manifest:
        done.append("finished an interrupted compaction")
    return settled


def _restore_metadata(store: ManifestStore, root: Root, done: list[str]) -> Root:
    """Array metadata that are gone or damaged, written anew from the root; and a commit where anything changed."""
    for name, metadata in root.arrays.items():
        key = f"{name}/{METADATA}"
        if _is_bad(store.storage, root, store.files, key):
            write_metadata(store, name, metadata)
            done.append(f"wrote {key} anew")
    return commit(store.storage, root, store.files)[0] if done else root


def _is_bad(storage: Storage, root: Root, files: Files, key: str) -> bool:
    if not storage.exists(key) or key not in metadata_keys(files):
        return True
    return metadata_damaged(storage, root, files, key)
