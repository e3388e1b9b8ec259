"""The note that an interrupted compaction leaves, and how it is finished."""

from __future__ import annotations

import json
import zlib

from trainhooks.store.errors import StoreError
from trainhooks.store.format.root import Root, commit, drop_manifests
from trainhooks.store.storage.base import Storage
from trainhooks.store.storage.zarr_store import ManifestStore

NOTE = ".compacting.json"


def finish_compaction(store: ManifestStore, root: Root) -> Root:
    """Finish what an interrupted compaction left: commit the shard it had replaced, if it had, and drop its note."""
    replaced = replacing(store.storage)
    if not replaced:
        return root
    for key, written in replaced.items():
        if key in store.files and listed(store.storage, key) == written:
            store.files[key] = written
    return _commit(store, root)


def replacing(storage: Storage) -> dict[str, tuple[int, str]]:
    """The shard that a compaction is replacing, or was when it was stopped: key -> (bytes, CRC-32) of the new one."""
    try:
        document = json.loads(storage.read(NOTE))
        return {str(key): (int(size), str(checksum)) for key, (size, checksum) in document.items()}
    except FileNotFoundError:
        return {}
    except (AttributeError, TypeError, ValueError) as error:
        raise StoreError(
            f"{storage}/{NOTE} is damaged ({error}). Delete it; `trainhooks verify` says which shard it was about."
        ) from error


def listed(storage: Storage, key: str) -> tuple[int, str] | None:
    """A file's bytes and CRC-32, as the manifest lists them; None where there is no such file."""
    try:
        content = storage.mmap(key)
    except FileNotFoundError:
        return None
    return len(content), f"{zlib.crc32(content):08x}"


def _commit(store: ManifestStore, root: Root) -> Root:
    root, _ = commit(store.storage, root, store.files)
    store.storage.delete(NOTE)
    drop_manifests(store.storage, but=root.manifest)
    return root
