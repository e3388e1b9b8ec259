"""Bringing a store that was interrupted or damaged back to its last commit, with all of its journal that is whole."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path

from trainhooks.store.compact import NOTE, settle
from trainhooks.store.errors import StoreError
from trainhooks.store.fence import FencedPlace
from trainhooks.store.fold import write_metadata
from trainhooks.store.integrity import Files, metadata_damaged, metadata_keys
from trainhooks.store.journal import JournalPiece, list_pieces
from trainhooks.store.lock import Lock
from trainhooks.store.place import TEMPORARY, Place, open_place
from trainhooks.store.root import METADATA, Root, commit, drop_manifests, read_manifest, read_root
from trainhooks.store.writer import StoreWriter
from trainhooks.store.zarr_store import PlaceStore


def repair(path: str | Path | Place) -> list[str]:
    """Settle what was interrupted, drop what is torn, and fold the journal; returns what was done, a line each.

    Journal files that are damaged go, and what was written in part. An array's own metadata are written anew from the
    root's; a lost manifest is made from the files that are there. An interrupted compaction is finished. A run that was
    not closed is rolled back to its last commit and its journal is folded; that counts as a resumption in `restarts`,
    and the run can go on. Damaged chunks cannot be mended: their checksums go on to say so.

    Raises StoreError where the root itself is damaged, or a writer holds the store.
    """
    place = open_place(path, durability="power")
    root = read_root(place)
    done: list[str] = []
    lock = Lock(place)
    held = FencedPlace(place, lock.confirm)
    try:
        done += _drop_torn(held)
        root = read_root(held)  # as it is now that nobody else writes
        store = PlaceStore(held, files=_manifest(held, root, done))
        root = _settle(store, root, done)
        root = _restore_metadata(store, root, done)
        drop_manifests(held, but=root.manifest)
    finally:
        lock.release()
    if not root.complete or list_pieces(place):
        before = root.records
        writer = StoreWriter(place, replace(root.layout, attributes=root.provenance), mode="resume")
        try:
            writer.fold(whole=True)
        finally:
            writer.abandon()
        done.append(f"rolled back to the last commit, and folded {read_root(place).records - before} records")
    return done


def _drop_torn(place: Place) -> list[str]:
    done = []
    for name in list(place.children()):
        if name.endswith(TEMPORARY):
            place.delete(name)
            done.append(f"deleted {name}: its writing was cut short")
    for piece in list_pieces(place):
        try:
            _ = JournalPiece(place, piece).arrays
        except StoreError:
            place.delete(piece.key)
            done.append(f"deleted {piece.key}: it was torn, step {piece.step} is lost")
    return done


def _manifest(place: Place, root: Root, done: list[str]) -> dict[str, tuple[int, str]]:
    try:
        return read_manifest(place, root)
    except (StoreError, ValueError, KeyError):
        done.append("made the manifest anew from the files that are there")
        keys = [key for key in place.list() if key.partition("/")[0] in root.arrays]
        contents = ((key, place.view(key)) for key in keys)
        return {key: (len(content), f"{zlib.crc32(content):08x}") for key, content in contents}


def _settle(store: PlaceStore, root: Root, done: list[str]) -> Root:
    try:
        settled = settle(store, root)
    except StoreError:
        store.place.delete(NOTE)
        settled = root
        done.append(f"deleted {NOTE}: it was damaged")
    if settled.manifest != root.manifest:
        done.append("finished an interrupted compaction")
    return settled


def _restore_metadata(store: PlaceStore, root: Root, done: list[str]) -> Root:
    """Array metadata that are gone or damaged, written anew from the root; and a commit where anything changed."""
    for name, metadata in root.arrays.items():
        key = f"{name}/{METADATA}"
        if _is_bad(store.place, root, store.files, key):
            write_metadata(store, name, metadata)
            done.append(f"wrote {key} anew")
    return commit(store.place, root, store.files)[0] if done else root


def _is_bad(place: Place, root: Root, files: Files, key: str) -> bool:
    if not place.exists(key) or key not in metadata_keys(files):
        return True
    return metadata_damaged(place, root, files, key)
