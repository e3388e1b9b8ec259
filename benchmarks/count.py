"""Counting pre-tokenised arrays against one `numpy.bincount` over the same memory map: speed and memory.

    python benchmarks/count.py --tokens 500000000 --repeats 5

Writes a uint16 stream of Zipf-like ids to a temporary folder (2 bytes a token), then runs interleaved: the bare
`bincount`, the engine in this process, and the engine in two worker processes that are started beforehand (their
start, some seconds, is printed apart; it does not grow with the corpus). Prints medians and ratios of speeds, and
the peak of resident memory of a process that does nothing but count. Linux, for the memory.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from trainhooks.corpora.base import LabelRule, Settings
from trainhooks.corpora.counting import count_corpus
from trainhooks.corpora.sources import open_sources

VOCAB = 50304
RULES = {"every position": LabelRule(), "windows of 2049": LabelRule(window=2049)}


def write(path: Path, tokens: int) -> None:
    """Ids with many of the low ones, in blocks."""
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        for start in range(0, tokens, 1 << 22):
            size = min(1 << 22, tokens - start)
            file.write((50257 * rng.random(size) ** 3).astype(np.uint16).tobytes())


def seconds(call: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def engine(path: Path, rule: LabelRule, executor: ProcessPoolExecutor | None = None) -> np.ndarray:
    """Counts by `count_corpus`, the opening of the file included."""
    settings = Settings(vocab_size=VOCAB, rule=rule)
    return count_corpus(open_sources([path], settings), settings=settings, workers=1, executor=executor)[0].counts


def peak() -> int:
    """Peak resident memory of this process in MB."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) // 1024
    raise SystemExit("/proc/self/status has no VmHWM: memory is measured on Linux only.")


def memory(path: str) -> None:
    """Prints the peak after the imports, and after counting."""
    before = peak()
    engine(Path(path), LabelRule())
    print(before, peak())


def speeds(path: Path, repeats: int) -> None:
    """The table of interleaved medians."""
    stream = np.memmap(path, dtype=np.uint16, mode="r")
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        start = seconds(lambda: [future.result() for future in [pool.submit(time.sleep, 1) for _ in range(2)]]) - 1
        start += seconds(lambda: engine(path, LabelRule(), pool))  # imports the package there, and fills the page cache
        calls: dict[str, Callable[[], np.ndarray]] = {"numpy.bincount": lambda: np.bincount(stream, minlength=VOCAB)}
        for name, rule in RULES.items():
            calls[f"1 process, {name}"] = lambda rule=rule: engine(path, rule)
            calls[f"2 processes, {name}"] = lambda rule=rule: engine(path, rule, pool)
        assert np.array_equal(calls["numpy.bincount"](), engine(path, LabelRule(), pool))
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(repeats):
            for name, call in calls.items():
                times[name].append(seconds(call))
    base = times["numpy.bincount"]
    print(f"{stream.size / 1e6:.0f} M tokens, uint16, vocabulary {VOCAB}, {os.cpu_count()} cores, {repeats} repeats\n")
    print("| | seconds | M tokens/s | speed / bincount (median of pairs) |\n|---|---|---|---|")
    for name, found in times.items():
        ratio = statistics.median(one / other for one, other in zip(base, found, strict=True))
        middle = statistics.median(found)
        print(f"| {name} | {middle:.3f} | {stream.size / middle / 1e6:.0f} | {ratio:.2f} |")
    print(f"\nStart of two workers with the first count: {start:.1f} s.")


def main() -> None:
    """Runs everything on one temporary file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=500_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory-only", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_only:
        memory(str(args.memory_only))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stream.bin"
        write(path, args.tokens)
        speeds(path, args.repeats)
        command = [sys.executable, __file__, "--memory-only", str(path)]
        before, after = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        print(f"Peak resident memory of one counting process: {after} MB, {before} MB of it after the imports.")


if __name__ == "__main__":
    main()
