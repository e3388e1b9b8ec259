"""How much smaller than raw float32 a run's output embeddings are, by codec profile.

    python benchmarks/store_size.py run.zarr --first 200 --last 296

The snapshots of those steps go into fresh blocks of 32, the last one as full as it gets, with the inner chunks of a
store; indexes and checksums are counted. A store recorded at bfloat16 gives the rows of that precision, one recorded at
float32 both. pcodec needs `pip install 'trainhooks[pcodec]'`.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from trainhooks.store import open_store, round_mantissa
from trainhooks.store.format.profiles import ARCHIVE, LIVE, Profile
from trainhooks.store.format.shards import ShardShape, write_shard

INNER_ROWS, BLOCK = 64, 32


def shard_bytes(block: np.ndarray, *, profile: Profile) -> int:
    """Bytes of a block [step, row, dim] as one shard."""
    steps, rows, dim = block.shape
    shape = ShardShape(BLOCK, -(-rows // INNER_ROWS) * INNER_ROWS, dim, INNER_ROWS)
    return write_shard(io.BytesIO(), lambda part: block[:, part], shape=shape, steps=steps, rows=rows, profile=profile)


def pcodec_bytes(block: np.ndarray) -> int:
    """The same block by pcodec, one inner chunk at a time; index entries included."""
    from numcodecs.pcodec import PCodec  # type: ignore[import-untyped]

    codec, total = PCodec(level=8), 4
    for top in range(0, block.shape[1], INNER_ROWS):
        chunk = np.full((INNER_ROWS, block.shape[2], BLOCK), np.nan, dtype=np.float32)
        tile = block[:, top : top + INNER_ROWS].transpose(1, 2, 0)
        chunk[: tile.shape[0], :, : tile.shape[2]] = tile
        total += len(codec.encode(chunk)) + 16
    return total


def blocks(path: Path, first: int, last: int) -> Iterator[np.ndarray]:
    """The snapshots of steps `first` to `last`, 32 at a time."""
    store = open_store(path)
    chosen = np.flatnonzero((store.snapshot_steps >= first) & (store.snapshot_steps <= last))
    if not len(chosen):
        raise SystemExit(f"{path} has no snapshots of steps {first} to {last}.")
    for start in range(0, len(chosen), BLOCK):
        yield np.stack([store.snapshots[index] for index in chosen[start : start + BLOCK]])


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--first", type=int, default=200)
    parser.add_argument("--last", type=int, default=296)
    options = parser.parse_args()
    precision = open_store(options.store).precision
    codecs: dict[str, Callable[[np.ndarray], int]] = {
        "live": lambda block: shard_bytes(block, profile=LIVE),
        "archive": lambda block: shard_bytes(block, profile=ARCHIVE),
        "pcodec": pcodec_bytes,
    }
    kept = {"float32": 23, "bfloat16": 7} if precision == "float32" else {str(precision): 23}
    raw, totals = 0, {(name, codec): [0, 0.0] for name in kept for codec in codecs}
    for block in blocks(options.store, options.first, options.last):
        raw += block.nbytes
        for name, bits in kept.items():
            rounded = round_mantissa(block, kept_bits=bits)
            for codec, encode in codecs.items():
                start = time.process_time()
                totals[name, codec][0] += encode(rounded)
                totals[name, codec][1] += time.process_time() - start
    print(f"| {raw / 1e6:,.0f} MB of raw float32 | codec | times smaller | MB per second of CPU |\n|---|---|---|---|")
    for (name, codec), (size, seconds) in totals.items():
        print(f"| {name} | {codec} | {raw / size:.2f} | {raw / 1e6 / seconds:,.0f} |")


if __name__ == "__main__":
    main()
