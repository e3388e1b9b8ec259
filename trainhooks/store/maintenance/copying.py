"""A sound copy of a store, also while a run writes it: all that is durable when it begins, as of one commit."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

from trainhooks.store.errors import StoreError
from trainhooks.store.format.arrays import write_metadata
from trainhooks.store.format.integrity import check_files, fits
from trainhooks.store.format.journal import JournalPiece
from trainhooks.store.format.root import METADATA, Root, commit, read_root
from trainhooks.store.reading.consistent import read_consistently
from trainhooks.store.reading.proof import is_newer
from trainhooks.store.storage.base import Storage
from trainhooks.store.storage.checksum import unsealed
from trainhooks.store.storage.local import LocalStorage, sync_folder
from trainhooks.store.storage.opening import open_storage
from trainhooks.store.storage.zarr_store import ManifestStore

_ATTEMPTS = 20


def snapshot(path: str | Path | Storage, *, out: str | Path) -> int:
    """Copy a store to the new folder `out`, which appears when it is whole and synced; returns its folded records.

    The copy is of one commit, with the journal that belongs to it: `verify` finds it whole, and a run can go on with
    it. What a running writer replaces meanwhile is copied again, as often as it takes, up to 20 times.

    Raises StoreError where there is no store, where it is damaged, or where `out` is taken.
    """
    storage, out = open_storage(path), Path(out)
    if out.exists() or out.is_symlink():
        raise StoreError(f"{out} is there already. Choose a new path.")
    temporary = out.with_name(f".{out.name}-{uuid.uuid4().hex}.partial")
    copy = ManifestStore(LocalStorage(temporary, durability="power"))
    try:
        copy.storage.create()
        root = _copy(storage, copy)
        temporary.replace(out)
        sync_folder(out.absolute().parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return root.records


def _copy(storage: Storage, copy: ManifestStore) -> Root:
    why = ""
    for _ in range(_ATTEMPTS):
        root, pieces, listed = read_consistently(storage)
        try:
            _copy_files(storage, copy, root, listed)
        except (FileNotFoundError, StoreError) as error:
            if read_root(storage).manifest == root.manifest:
                raise StoreError(
                    f"{storage} is damaged: {error}. `trainhooks verify` says what can be recovered."
                ) from error
            why = str(error)
            continue
        if read_root(storage).attempt != root.attempt:
            why = "it was cut meanwhile"
            continue
        return _finish(copy, root, pieces, listed)
    raise StoreError(f"{storage} changes faster than it can be copied ({why}). Try again when the run is slower.")


def _copy_files(storage: Storage, copy: ManifestStore, root: Root, listed: dict[str, tuple[int, str]]) -> None:
    """Bring the copy's chunks up to this root's; those that it has already are left."""
    for key, wanted in listed.items():
        if key.endswith(f"/{METADATA}") or copy.files.get(key) == wanted:
            continue
        content = storage.mmap(key)
        if not fits(content, wanted):
            # rows behind the committed end: a fold that is under way, or was interrupted
            if not is_newer(ManifestStore(storage), root, key):
                raise StoreError(f"{storage}/{key} does not fit its checksum")
            if not key.startswith("output_embedding/"):
                unsealed(bytes(content), where=f"{storage}/{key}")
        copy.put(key, content)


def _finish(copy: ManifestStore, root: Root, pieces: list[JournalPiece], listed: dict[str, tuple[int, str]]) -> Root:
    for key in [key for key in copy.files if key not in listed]:
        copy.storage.delete(key)
        del copy.files[key]
    for name, metadata in root.arrays.items():
        write_metadata(copy, name, metadata)
    for piece in pieces:
        copy.storage.put(piece.piece.key, piece.content)
    root, _ = commit(copy.storage, root, copy.files)
    check_files(copy.storage, root)
    return root
