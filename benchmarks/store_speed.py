"""How fast a store is written and read, in one run with `torch.save` and safetensors of the same matrices.

    python benchmarks/store_speed.py            # 50,304 x 768: 13 GB of disk, some minutes
    python benchmarks/store_speed.py --small    # seconds

Consecutive matrices differ as those of a training run do: a step of 1e-4 on numbers of 0.02, bfloat16 precision.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch
from safetensors.torch import save_file

from trainhooks.store import SNAPSHOT, BackgroundWriter, Layout, StoreWriter, Writing, open_store
from trainhooks.store.format.precision import round_mantissa
from trainhooks.store.format.profiles import LIVE
from trainhooks.store.format.schema import inner_rows
from trainhooks.store.storage.local import LocalStorage


def matrices(vocab: int, dim: int) -> Iterator[np.ndarray]:
    """Endless consecutive float32 matrices [vocab, dim]; each a buffer that the next one changes."""
    rng = np.random.default_rng(0)
    matrix = 0.02 * rng.standard_normal((vocab, dim), dtype=np.float32)
    steps = 1e-4 * rng.standard_normal((4, vocab, dim), dtype=np.float32)
    while True:
        for step in steps:
            yield matrix
            matrix += step


def seconds(action: Callable[[], object]) -> float:
    """Wall time of one call."""
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def training_thread(folder: Path, layout: Layout, *, repeats: int) -> None:
    """Milliseconds of the training thread for one matrix: store, clone, torch.save, safetensors, interleaved.

    The store is given a clone to keep, as the recorder does: "store" is what comes on top of that clone.
    """
    writer = BackgroundWriter(StoreWriter(folder / "thread.zarr", layout), writing=Writing())
    times: dict[str, list[float]] = {"clone": [], "store": [], "torch.save": [], "safetensors": []}
    for step, matrix in zip(range(repeats), matrices(layout.vocab, layout.dim), strict=False):
        tensor = torch.from_numpy(matrix)
        begun = time.perf_counter()
        kept = tensor.clone().numpy()
        times["clone"].append(time.perf_counter() - begun)
        times["store"].append(seconds(lambda m=kept, t=step: writer.append(t, {}, snapshot=m, keep=True)))
        del kept
        writer.flush()
        times["torch.save"].append(seconds(lambda t=tensor: torch.save(t, folder / "one.pt")))
        times["safetensors"].append(seconds(lambda t=tensor: save_file({"e": t}, folder / "one.safetensors")))
    writer.close()
    clone = median(times["clone"])
    for name, took in times.items():
        print(f"training thread, {name}: {1000 * median(took):.1f} ms, {median(took) / clone:.2f} x clone")


def compressor(layout: Layout) -> float:
    """Bytes a second of raw float32 that the live profile's compressor takes on one thread, alone."""
    rows = inner_rows(layout)
    source = matrices(rows, layout.dim)
    block = np.stack([round_mantissa(next(source), kept_bits=7) for _ in range(layout.block)])
    chunk = np.ascontiguousarray(block.transpose(1, 2, 0))
    LIVE.compress(chunk)
    return chunk.nbytes / median(seconds(lambda: LIVE.compress(chunk)) for _ in range(7))


def sustained(folder: Path, layout: Layout, *, blocks: int) -> Path:
    """Bytes a second from the first append to the last fold, journal and fold included; and memory as it goes."""
    path = folder / "run.zarr"
    alone = compressor(layout)
    writer = BackgroundWriter(StoreWriter(path, layout), writing=Writing())
    source = matrices(layout.vocab, layout.dim)
    begun, peaks = time.perf_counter(), []
    for step in range(blocks * layout.block):
        writer.append(step, {}, snapshot=next(source).copy(), keep=True)
        if (step + 1) % layout.block == 0:
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    writer.close()
    rate = 4.0 * layout.vocab * layout.dim * blocks * layout.block / (time.perf_counter() - begun)
    print(f"sustained: {rate / 1e6:.0f} MB/s raw; compressor alone {alone / 1e6:.0f} MB/s; ratio {rate / alone:.2f}")
    print("peak memory after each block: " + ", ".join(f"{peak:.0f} MB" for peak in peaks))
    return path


def reading(path: Path) -> None:
    """One step's matrix, and all of them in order."""
    store = open_store(path)
    step = int(store.snapshot_steps[len(store.snapshots) // 2])
    print(f"one step's matrix: {seconds(lambda: open_store(path).output_embedding(step)):.2f} s")
    raw = 4 * store.vocab * store.dim * len(store.snapshots)
    took = seconds(lambda: [store.snapshots[i][0, 0] for i in range(len(store.snapshots))])
    print(f"full scan: {raw / took / 1e9:.2f} GB/s")


class CountingPlace(LocalStorage):
    """A folder that counts the bytes of its chunks that are read."""

    counted = 0

    def read(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """See `Storage.read`."""
        data = super().read(key, start, stop)
        self.counted += len(data) if SNAPSHOT in key else 0
        return data

    def read_end(self, key: str, count: int) -> bytes:
        """See `Storage.read_end`."""
        data = super().read_end(key, count)
        self.counted += len(data) if SNAPSHOT in key else 0
        return data


def token_path(folder: Path, *, vocab: int, dim: int, steps: int) -> None:
    """The share of a store's bytes that one token's path through all steps reads."""
    layout = Layout(vocab=vocab, dim=dim, groups=(), sketch_size=0, precision="bfloat16")
    writer = StoreWriter(folder / "path.zarr", layout)
    for step, matrix in zip(range(steps), matrices(vocab, dim), strict=False):
        writer.append(step, {}, snapshot=matrix)
    writer.close()
    place = CountingPlace(folder / "path.zarr")
    store = open_store(place)
    took = seconds(lambda: store.token_path(vocab // 2))
    print(f"one token through {steps} steps, V={vocab}: {place.counted / place.size():.2%} of the bytes, {took:.2f} s")


def opening(folder: Path, *, steps: int) -> None:
    """Seconds to open a store of many steps."""
    layout = Layout(vocab=64, dim=4, groups=("a", "b"), sketch_size=16)
    path = folder / "long.zarr"
    writer = BackgroundWriter(StoreWriter(path, layout), writing=Writing())
    for step in range(steps):
        matrix = np.full((64, 4), step, np.float32)
        writer.append(step, {}, snapshot=matrix, sketch=np.ones((2, 16), np.float32))
    writer.close()
    print(f"opening {steps} steps: {1000 * median(seconds(lambda: open_store(path)) for _ in range(5)):.0f} ms")


def main() -> None:
    """Measure and print; each line stands for itself."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="small matrices and short runs")
    parser.add_argument("--out", type=Path, help="folder on the disk to measure; a temporary one by default")
    given = parser.parse_args()
    small = given.small
    vocab, dim = (2048, 64) if small else (50304, 768)
    layout = Layout(vocab=vocab, dim=dim, groups=(), sketch_size=0, precision="bfloat16")
    with tempfile.TemporaryDirectory(dir=given.out) as name:
        folder = Path(name)
        training_thread(folder, layout, repeats=5 if small else 9)
        path = sustained(folder, layout, blocks=2)
        reading(path)
        token_path(folder, vocab=1024 if small else 8192, dim=32 if small else 64, steps=64 if small else 1000)
        opening(folder, steps=300 if small else 10_000)


if __name__ == "__main__":
    main()
