"""How fast one block of output embeddings becomes a Zarr v3 shard, by engine: MB/s of raw float32 and peak memory.

    python benchmarks/store_engines.py                       # a random walk of 32 x 8,192 x 768, bfloat16 precision
    python benchmarks/store_engines.py --store run.zarr      # the last 32 snapshots of a run

Each engine writes the same block with the same codecs to the same disk, in a process of its own, `--repeats` times in
turn with the others; medians. Memory is the process' peak resident set less what it was with the block loaded (the
block itself is memory-mapped). "compressor alone" is blosc on chunks that lie ready, in as many threads: the ceiling.
zarr-python, zarrs and TensorStore hold a whole shard, so give the block a size that fits. Needs `zarrs`, `tensorstore`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, TransposeCodec

from trainhooks.store import open_store, round_mantissa
from trainhooks.store.format.profiles import LIVE
from trainhooks.store.format.shards import ShardShape, write_shard

INNER_ROWS, BLOCK = 64, 32


def random_walk(vocab: int, dim: int) -> np.ndarray:
    """Snapshots [32, vocab, dim] whose steps are about 1% of the weights, rounded to bfloat16."""
    rng = np.random.default_rng(0)
    block = np.empty((BLOCK, vocab, dim), dtype=np.float32)
    block[0] = rng.standard_normal((vocab, dim), dtype=np.float32)
    for step in range(1, BLOCK):
        block[step] = block[step - 1] + 0.01 * rng.standard_normal((vocab, dim), dtype=np.float32)
    return round_mantissa(block, kept_bits=7)


def last_block(path: Path) -> np.ndarray:
    """The last 32 snapshots of a store; rows beyond the last whole inner chunk are left out."""
    store = open_store(path)
    rows = store.vocab // INNER_ROWS * INNER_ROWS
    count = len(store.snapshots)
    return np.stack([store.snapshots[index][:rows] for index in range(count - BLOCK, count)])


def make_array(folder: Path, shape: tuple[int, ...]) -> zarr.Array:
    """The array as a store declares it: one shard a block."""
    return zarr.create_array(
        folder,
        shape=shape,
        dtype="float32",
        chunks=(BLOCK, INNER_ROWS, shape[2]),
        shards=shape,
        filters=[TransposeCodec(order=(1, 2, 0))],
        compressors=[BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle", typesize=4), Crc32cCodec()],
        fill_value=np.nan,
    )


def zarr_python(folder: Path, block: np.ndarray, threads: int) -> None:
    """zarr-python's own pipeline."""
    with zarr.config.set({"threading.max_workers": threads}):
        make_array(folder, block.shape)[:] = block


def zarrs(folder: Path, block: np.ndarray, threads: int) -> None:
    """The Rust pipeline behind zarr-python's interface."""
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "threading.max_workers": threads}):
        make_array(folder, block.shape)[:] = block


def tensorstore(folder: Path, block: np.ndarray, threads: int) -> None:
    """TensorStore's C++."""
    import tensorstore as ts

    make_array(folder, block.shape)
    context = {"data_copy_concurrency": {"limit": threads}}
    kvstore = {"driver": "file", "path": str(folder)}
    array = ts.open({"driver": "zarr3", "kvstore": kvstore, "context": context}).result()
    array.write(block).result()


def assembler(folder: Path, block: np.ndarray, threads: int) -> None:
    """This package's."""
    make_array(folder, block.shape)
    shape = ShardShape(BLOCK, block.shape[1], block.shape[2], INNER_ROWS)
    target = folder / "c" / "0" / "0" / "0"
    target.parent.mkdir(parents=True)
    with open(target, "wb") as file:
        write_shard(file, lambda rows: block[:, rows], shape=shape, steps=BLOCK, rows=block.shape[1], threads=threads)


ENGINES: dict[str, Callable[[Path, np.ndarray, int], None]] = {
    "zarr-python": zarr_python,
    "zarrs": zarrs,
    "TensorStore": tensorstore,
    "streaming assembler": assembler,
}
COMPRESSOR = "compressor alone"


def compressor(block: np.ndarray, threads: int) -> float:
    """Seconds that blosc alone takes; chunks are made a few at a time, outside the clock."""
    seconds = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for top in range(0, block.shape[1], 8 * INNER_ROWS):
            tops = range(top, min(top + 8 * INNER_ROWS, block.shape[1]), INNER_ROWS)
            chunks = [np.ascontiguousarray(block[:, t : t + INNER_ROWS].transpose(1, 2, 0)) for t in tops]
            start = time.perf_counter()
            list(pool.map(LIVE.compress, chunks))
            seconds += time.perf_counter() - start
    return seconds


def sync(folder: Path) -> None:
    """Everything below a folder is on the disk when this returns; no engine is spared that."""
    for file in folder.rglob("*"):
        if file.is_file():
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())


def measure(engine: str, data: Path, folder: Path, threads: int) -> dict[str, float]:
    """One write in this process: seconds with fsync, and the growth of resident memory."""
    block = np.load(data, mmap_mode="r")
    for matrix in block:  # into the page cache, which is nobody's memory
        matrix.max()
    before = peak_bytes(reset=True)
    start = time.perf_counter()
    if engine == COMPRESSOR:
        seconds = compressor(block, threads)
    else:
        ENGINES[engine](folder, block, threads)
        sync(folder)
        seconds = time.perf_counter() - start
        assert np.array_equal(zarr.open_array(folder, mode="r")[:, :INNER_ROWS], block[:, :INNER_ROWS])
    return {"seconds": seconds, "peak": peak_bytes() - before}


def peak_bytes(*, reset: bool = False) -> int:
    """The highest anonymous plus file memory so far, as Linux counts it; `reset` begins to count anew."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise SystemExit("/proc/self/status has no VmHWM: memory is measured on Linux only.")


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, help="take the last block of this run instead of a random walk")
    parser.add_argument("--vocab", type=int, default=8192, help="rows of the random walk, a multiple of 64")
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="where to write; default: a temporary folder")
    parser.add_argument("--one", nargs=3, metavar=("ENGINE", "DATA", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        engine, data, folder = options.one
        print(json.dumps(measure(engine, Path(data), Path(folder), options.threads)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        data = Path(name) / "block.npy"
        block = random_walk(options.vocab, options.dim) if options.store is None else last_block(options.store)
        raw = block.nbytes
        np.save(data, block)
        del block
        results: dict[str, list[dict[str, float]]] = {engine: [] for engine in (*ENGINES, COMPRESSOR)}
        for _ in range(options.repeats):
            for engine, runs in results.items():
                target = Path(name) / "array"
                command = [sys.executable, __file__, "--threads", str(options.threads)]
                done = subprocess.run(
                    [*command, "--one", engine, str(data), str(target)], check=True, capture_output=True, text=True
                )
                runs.append(json.loads(done.stdout.splitlines()[-1]))
                shutil.rmtree(target, ignore_errors=True)
    report(results, raw)


def report(results: dict[str, list[dict[str, float]]], raw: int) -> None:
    """The table, in Markdown."""
    ceiling = statistics.median(run["seconds"] for run in results[COMPRESSOR])
    print(f"| {raw / 1e6:,.0f} MB of raw float32 | MB/s | of the compressor's | memory, MB |\n|---|---|---|---|")
    for engine, runs in results.items():
        seconds = statistics.median(run["seconds"] for run in runs)
        peak = max(run["peak"] for run in runs)
        print(f"| {engine} | {raw / 1e6 / seconds:,.0f} | {ceiling / seconds:.2f} | {peak / 1e6:,.0f} |")


if __name__ == "__main__":
    main()
