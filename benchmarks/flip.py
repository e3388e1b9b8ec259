"""Flip bytes all over a store, one at a time, and look who finds it.

    python benchmarks/flip.py --flips 200

`verify` must find every one; the store's own reader those in metadata when it opens; zarr-python, xarray and
TensorStore those in chunks when they read.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from trainhooks.core.variable import Variable
from trainhooks.store import Layout, StoreError, StoreWriter, open_store
from trainhooks.store.maintenance.verify import verify


def make(path: Path) -> None:
    """A small store that has ended, with several blocks, numbers and text."""
    layout = Layout(
        vocab=200,
        dim=8,
        groups=("embedding", "whole"),
        sketch_size=8,
        block=4,
        variables=(Variable("metric"), Variable("by_group", dims=("group",))),
        token_count=np.arange(200),
        token_text=[f"t{i}" for i in range(200)],
    )
    writer = StoreWriter(path, layout)
    rng = np.random.default_rng(0)
    for step in range(14):
        matrix = rng.standard_normal((200, 8)).astype(np.float32)
        sketch = np.full((2, 8), step, np.float32)
        writer.append(step, {"metric": step, "by_group": np.ones(2)}, snapshot=matrix, sketch=sketch)
    writer.close()


def flip_byte(file: Path, rng: random.Random, *, at: int | None = None) -> Callable[[], object]:
    """Flip one bit of a file; returns what undoes it."""
    content = file.read_bytes()
    damaged = bytearray(content)
    damaged[rng.randrange(len(content)) if at is None else at] ^= 1 << rng.randrange(8)
    file.write_bytes(damaged)
    return lambda: file.write_bytes(content)


def raises_everywhere(path: Path, name: str) -> list[str]:
    """Which readers refuse to read an array: zarr, xarray, tensorstore."""
    readers = {"zarr": _read_zarr, "xarray": _read_xarray, "tensorstore": _read_tensorstore}
    refused = []
    for reader, read in readers.items():
        try:
            read(path, name)
        except Exception:  # each has its own kinds, and any will do
            refused.append(reader)
    return refused


def _read_zarr(path: Path, name: str) -> object:
    import zarr

    return zarr.open_group(path, mode="r")[name][...]


def _read_xarray(path: Path, name: str) -> object:
    import xarray

    with xarray.open_zarr(path, consolidated=True) as opened:
        return opened[name].load()


def _read_tensorstore(path: Path, name: str) -> object:
    import tensorstore

    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path / name}/"}}
    return tensorstore.open(spec).result().read().result()


def main() -> None:
    """Flip, look, undo; print who found how many."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.zarr"
        make(path)
        files = sorted(file for file in path.rglob("*") if file.is_file())
        for _ in range(given.flips):
            file = rng.choice(files)
            key = file.relative_to(path).as_posix()
            undo = flip_byte(file, rng)
            chunk = "/c/" in key
            found["chunk" if chunk else "metadata"] += 1
            found["chunk, verify" if chunk else "metadata, verify"] += not verify(path).sound
            if chunk and not key.startswith(("token_text", "group")):
                found["numeric chunk"] += 1
                found.update(f"numeric chunk, {reader}" for reader in raises_everywhere(path, key.split("/")[0]))
            elif not chunk:
                try:
                    open_store(path)
                except StoreError:
                    found["metadata, open_store"] += 1
            undo()
    for what, count in sorted(found.items()):
        print(f"{what}: {count}")


if __name__ == "__main__":
    main()
