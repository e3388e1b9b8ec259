"""What keeping a record costs the threads that write: processor time of its journal file, and of its part of a fold.

    python benchmarks/store_cost.py                        # the demo's head, 8,192 x 256
    python benchmarks/store_cost.py --against 1818794      # another version beside it, in turns
    python benchmarks/store_cost.py --run RUN.zarr         # the matrices of a run that was recorded

A block of 32 records a round, each with a matrix of bfloat16 bits as a live run hands it over, 64 numbers, sketches of
8 groups and label counts. Without `--run` the head is one that AdamW trains (`moving_head.py`).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from pathlib import Path

import against
import numpy as np
import torch
from moving_head import trained_heads, zipf_counts

import trainhooks as th
from trainhooks.store import Layout, StoreWriter, open_store

GROUPS, BUCKETS, NUMBERS, BLOCK = 8, 1009, 64, 32


def trained(vocab: int, dim: int) -> Iterator[np.ndarray]:
    """Bits of bfloat16 [vocab, dim] of one matrix a step, each a copy."""
    for head in trained_heads(zipf_counts(vocab), dim=dim, learning_rate=1e-3, steps=1 << 30):
        yield head.to(torch.bfloat16).view(torch.uint16).numpy()


def recorded(path: Path) -> Iterator[np.ndarray]:
    """The same of a store, from its middle on and around again."""
    snapshots = open_store(path).snapshots
    for index in count(len(snapshots) // 2):
        matrix = torch.from_numpy(np.array(snapshots[index % len(snapshots)]))
        yield matrix.to(torch.bfloat16).view(torch.uint16).numpy()


class Cost:
    """A store that grows by a block a round."""

    def __init__(self, folder: Path, matrices: Iterator[np.ndarray]) -> None:
        self._matrices = matrices
        vocab, dim = next(matrices).shape
        variables = tuple(th.Variable(f"metric.value_{index}") for index in range(NUMBERS))
        groups = tuple(f"layers.{index}" for index in range(GROUPS))
        layout = Layout(
            vocab=vocab, dim=dim, groups=groups, sketch_size=BUCKETS, precision="bfloat16", variables=variables
        )
        self._writer = StoreWriter(folder / "run.zarr", layout)
        self._rest = {
            "values": dict.fromkeys((variable.name for variable in variables), np.float64(1.0)),
            "sketch": np.random.default_rng(0).standard_normal((GROUPS, BUCKETS)).astype(np.float32),
            "label_counts": np.arange(vocab, dtype=np.int64),
        }

    def round(self, number: int) -> against.Round:
        """Milliseconds a record of the block `number`, in a thread of its own: in the main one blosc begins others."""
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(self._round, number).result()

    def _round(self, number: int) -> against.Round:
        took = []
        for step, matrix in enumerate(islice(self._matrices, BLOCK), start=number * BLOCK):
            begin = time.process_time()
            self._writer.append(step, snapshot=matrix, **self._rest)
            took.append(1000 * (time.process_time() - begin))
        journal = statistics.median(took[:-1])
        return {"journal": journal, "fold": (took[-1] - journal) / BLOCK, "together": sum(took) / BLOCK}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--run", type=Path, help="a store whose matrices are taken")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="folder on the disk to measure; a temporary one by default")
    parser.add_argument("--against", metavar="REF", help="a commit, branch or tag to measure beside the present tree")
    parser.add_argument(against.SERVE, action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.against and not given.serve:
        rows = against.compare(__file__, sys.argv[1:], ref=given.against, rounds=given.rounds)
        print(against.table(rows, unit="CPU ms a record"))
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=given.out) as folder:
        matrices = trained(given.vocab, given.dim) if given.run is None else recorded(given.run)
        cost = Cost(Path(folder), matrices)
        if given.serve:
            against.serve(cost.round)
            return
        found = [cost.round(number) for number in range(given.rounds + 1)][1:]
    for name in found[0]:
        print(f"{name}: {statistics.median(one[name] for one in found):.2f} ms of CPU a record")


if __name__ == "__main__":
    main()
