"""Making a store that has ended smaller: its shards anew with another profile, in place; or a copy with pcodec.

In place, one shard after the other is written beside the old one, synced, and renamed onto it. `.compacting.json` names
the shard that is being replaced, and what will be in it: a shard that fits either the manifest or this note is whole,
so an interrupted compaction leaves a valid store, and `settle` goes on from there.
"""

from __future__ import annotations

import json
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from trainhooks.store.errors import StoreError
from trainhooks.store.format.compaction_note import NOTE, _commit, finish_compaction
from trainhooks.store.format.integrity import check_files
from trainhooks.store.format.journal import drop_cut_short, list_pieces
from trainhooks.store.format.kept import hold
from trainhooks.store.format.layout import SNAPSHOT, Layout
from trainhooks.store.format.profiles import ARCHIVE, Profile
from trainhooks.store.format.root import KEY, METADATA, Root, read_manifest, read_root
from trainhooks.store.format.schema import inner_rows, shard_rows
from trainhooks.store.format.shards import Shard, ShardShape, recompress_shard
from trainhooks.store.storage.base import ChecksumWriter, Storage
from trainhooks.store.storage.fence import FencedStorage
from trainhooks.store.storage.local import LocalStorage
from trainhooks.store.storage.lock import Lock
from trainhooks.store.storage.opening import open_storage
from trainhooks.store.storage.zarr_store import ManifestStore, read_array

_PCODEC_SHARD_BYTES = 1 << 28  # raw; zarr-python holds a whole shard, and its encoded chunks


@dataclass(frozen=True)
class Compacted:
    """What a compaction did: shards written anew, shards that were so already, bytes of all before and after."""

    rewritten: int
    kept: int
    bytes_before: int
    bytes_after: int


def compact(
    path: str | Path | Storage,
    *,
    profile: Profile = ARCHIVE,
    threads: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Compacted:
    """Write the store's output embeddings anew with `profile`, shard by shard, in place; every number stays as it is.

    May be repeated: shards that have the profile's shuffle already are left alone. `progress(done, all)` is called
    after each shard. Needs room for one shard more, and memory for a few inner chunks a thread.

    Raises StoreError where there is no store, a writer holds it, its journal has records that are not folded, or a
    shard is damaged; what was done by then stays.
    """
    storage = open_storage(path, durability="power")  # a copy replaces the only one
    with _unwritten(storage) as storage:
        root = read_root(storage)
        store = ManifestStore(storage, files=read_manifest(storage, root))
        root = finish_compaction(store, root)
        check_files(storage, root)
        keys = _shard_keys(store)
        before = sum(store.files[key][0] for key in keys)
        rewritten = 0
        for done, key in enumerate(keys, start=1):
            shard = Shard(storage.mmap(key), shape=_shard_shape(root.layout), where=f"{storage}/{key}")
            if not shard.made_by(profile):
                root = _replace(store, root, key, shard, profile=profile, threads=threads)
                rewritten += 1
            if progress is not None:
                progress(done, len(keys))
        after = sum(store.files[key][0] for key in keys)
    return Compacted(rewritten, len(keys) - rewritten, before, after)


def copy_with_pcodec(
    path: str | Path, *, out: str | Path, level: int = 8, progress: Callable[[int, int], None] | None = None
) -> int:
    """Copy a store to `out` with its output embeddings compressed by pcodec; returns the copy's bytes.

    The copy is a plain Zarr v3 group and no store: a run cannot go on with it, and its `output_embedding` has the
    dimensions (token, dim, snapshot_step). pcodec is no core codec: zarr-python reads it where `numcodecs` and `pcodec`
    are installed, TensorStore does not. The group's attributes say so. `level` is pcodec's, 0 to 12.

    `out` appears when it is whole. Raises ImportError without `pcodec`; StoreError where `out` is taken, or the store
    cannot be read as `compact` says.
    """
    _import_pcodec()
    storage, out = open_storage(path), Path(out)
    if out.exists():
        raise StoreError(f"{out} is there already. Choose a new path.")
    temporary = out.with_name(f".{out.name}-{uuid.uuid4().hex}.partial")
    with _unwritten(storage) as storage:
        root = read_root(storage)
        store = ManifestStore(storage, files=read_manifest(storage, root))
        root = finish_compaction(store, root)
        check_files(storage, root)
        try:
            temporary.mkdir(parents=True)
            _copy(store, root, LocalStorage(temporary), level=level, progress=progress)
            temporary.replace(out)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return sum(file.stat().st_size for file in out.rglob("*") if file.is_file())


@contextmanager
def _unwritten(storage: Storage) -> Iterator[Storage]:
    """Hold a store that nobody writes and whose journal is empty; gives its place behind the fence."""
    read_root(storage)
    lock = Lock(storage)
    held = FencedStorage(storage, lock.confirm)
    try:
        drop_cut_short(held)
        waiting = sum(1 for _ in list_pieces(held))
        if waiting:
            raise StoreError(
                f"{storage} has {waiting} journal files that are not folded: its run was not closed. Where it is over, "
                f"`trainhooks verify --repair {storage}` folds them; where it goes on, compact the store afterwards."
            )
        yield held
    finally:
        lock.release()


def _replace(store: ManifestStore, root: Root, key: str, shard: Shard, *, profile: Profile, threads: int) -> Root:
    def write(file: ChecksumWriter) -> str:
        recompress_shard(file, shard, profile=profile, threads=threads)
        # before the rename that follows: whoever finds the new shard finds the note, too
        store.storage.put(NOTE, json.dumps({key: [file.size, f"{file.crc32:08x}"]}).encode())
        return key

    hold(store, root, [key])
    store.put_streamed(key, write)
    return _commit(store, root)


def _shard_keys(store: ManifestStore) -> list[str]:
    return sorted(key for key in store.files if key.startswith(f"{SNAPSHOT}/c/"))


def _shard_shape(layout: Layout) -> ShardShape:
    return ShardShape(layout.block, shard_rows(layout), layout.dim, inner_rows(layout))


def _copy(
    store: ManifestStore, root: Root, out: LocalStorage, *, level: int, progress: Callable[[int, int], None] | None
) -> None:
    attributes = {
        "description": "copy of a trainhooks store; output_embedding is compressed by pcodec, which is not core Zarr",
        "source": root.to_json()["attributes"][KEY],
    }
    zarr.create_group(out.path, zarr_format=3, attributes=attributes)
    for name, metadata in root.arrays.items():
        if name != SNAPSHOT:
            out.put(f"{name}/{METADATA}", json.dumps(metadata, allow_nan=False).encode())
    for key in store.files:
        if not key.startswith(f"{SNAPSHOT}/") and not key.endswith(METADATA):
            out.put(key, store.storage.mmap(key))
    with warnings.catch_warnings():
        # the attributes say so, and what zarr-python, xarray and we read stays readable
        warnings.filterwarnings("ignore", message="Numcodecs codecs are not in the Zarr version 3 specification")
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part in the Zarr format 3")
        if SNAPSHOT in root.arrays:
            _copy_snapshots(store, root, out.path, level=level, progress=progress)
        zarr.consolidate_metadata(out.path)


def _copy_snapshots(
    store: ManifestStore, root: Root, out: Path, *, level: int, progress: Callable[[int, int], None] | None
) -> None:
    layout, metadata = root.layout, root.arrays[SNAPSHOT]
    rows = inner_rows(layout)
    raw = 4 * rows * layout.dim * layout.block
    height = min(-(-layout.vocab // rows), max(1, _PCODEC_SHARD_BYTES // raw)) * rows
    copy = zarr.create_array(
        out,
        name=SNAPSHOT,
        # the snapshots last by the dimensions' order: zarr-python cannot write pcodec after a `transpose`
        shape=(layout.vocab, layout.dim, root.snapshots),
        dtype="float32",
        chunks=(rows, layout.dim, layout.block),
        shards=(height, layout.dim, layout.block),
        serializer=_import_pcodec()(level=level),
        compressors=[],
        fill_value=np.nan,
        dimension_names=("token", "dim", "snapshot_step"),
        attributes=metadata["attributes"],
    )
    tiles = [(b, top) for b in range(0, root.snapshots, layout.block) for top in range(0, layout.vocab, height)]
    for done, (start, top) in enumerate(tiles, start=1):
        tile = read_array(store, SNAPSHOT, metadata, (slice(start, start + layout.block), slice(top, top + height)))
        copy[top : top + tile.shape[1], :, start : start + tile.shape[0]] = tile.transpose(1, 2, 0)
        if progress is not None:
            progress(done, len(tiles))


def _import_pcodec() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from numcodecs.zarr3 import PCodec  # type: ignore[import-untyped]

            PCodec(level=1)  # numcodecs looks for pcodec only here
    except ImportError as error:
        raise ImportError("pcodec is not installed: pip install 'trainhooks[pcodec]'.") from error
    return PCodec
