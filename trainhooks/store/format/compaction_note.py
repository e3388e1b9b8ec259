"""compaction note."""

from __future__ import annotations

import json
import zlib

from trainhooks.store.errors import StoreError
from trainhooks.store.format.root import Root, commit, drop_manifests
from trainhooks.store.storage.base import Place
from trainhooks.store.storage.zarr_store import PlaceStore

NOTE = ".compacting.json"


def settle(store: PlaceStore, root: Root) -> Root:
    """Finish what an interrupted compaction left: commit the shard it had replaced, if it had, and drop its note."""
    replaced = replacing(store.place)
    if not replaced:
        return root
    for key, written in replaced.items():
        if key in store.files and listed(store.place, key) == written:
            store.files[key] = written
    return _commit(store, root)


def replacing(place: Place) -> dict[str, tuple[int, str]]:
    """The shard that a compaction is replacing, or was when it was stopped: key -> (bytes, CRC-32) of the new one."""
    try:
        document = json.loads(place.read(NOTE))
        return {str(key): (int(size), str(checksum)) for key, (size, checksum) in document.items()}
    except FileNotFoundError:
        return {}
    except (AttributeError, TypeError, ValueError) as error:
        raise StoreError(
            f"{place}/{NOTE} is damaged ({error}). Delete it; `trainhooks verify` says which shard it was about."
        ) from error


def listed(place: Place, key: str) -> tuple[int, str] | None:
    """A file's bytes and CRC-32, as the manifest lists them; None where there is no such file."""
    try:
        content = place.view(key)
    except FileNotFoundError:
        return None
    return len(content), f"{zlib.crc32(content):08x}"


def _commit(store: PlaceStore, root: Root) -> Root:
    root, _ = commit(store.place, root, store.files)
    store.place.delete(NOTE)
    drop_manifests(store.place, but=root.manifest)
    return root
