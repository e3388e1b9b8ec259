"""The output embeddings that figures are drawn from: a few of the run's, each block of the store read once."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from trainhooks.lead.trajectory import thinned
from trainhooks.store import Store
from trainhooks.store.format.precision import unpack

SPREAD = 10
"""Records spread evenly over log(1 + step): each may cost a block."""
MOST = 40
KEPT_BYTES = 1536 * 1024**2
LEAST = 3


@dataclass(frozen=True)
class TakenMatrices:
    """Matrices of a run in memory, in order of steps: a trajectory (`trainhooks.lead.Trajectory`).

    `matrices` are float32 [vocab, dim], or uint16 where they are bfloat16 numbers, of which these are the bits.
    """

    steps: Int64[np.ndarray, "taken"]
    matrices: tuple[np.ndarray, ...]

    def __len__(self) -> int:
        return len(self.matrices)

    def __getitem__(self, index: int, /) -> Float32[np.ndarray, "vocab dim"]:
        matrix = self.matrices[index]
        return unpack(matrix) if matrix.dtype == np.uint16 else matrix


def positions(store: Store, *, most: int = MOST) -> Int64[np.ndarray, "taken"]:
    """Which snapshots are taken: first and last, `SPREAD` between, and more where their block is read anyway.

    No more than `most`, and no more than fit into 1.5 GB (three at the least).
    """
    steps, blocks = store.snapshot_steps, store.snapshots.block_of
    fitting = max(LEAST, min(most, KEPT_BYTES // (4 * store.vocab * store.dim)))
    spread = thinned(steps, limit=min(SPREAD, fitting))
    dense = thinned(steps, limit=2 * fitting)
    free = dense[np.isin(blocks[dense], blocks[spread])]
    found: Int64[np.ndarray, "taken"] = np.union1d(
        spread, free[thinned(steps[free], limit=max(2, fitting - len(spread)))]
    )
    return found


def take(store: Store, *, most: int = MOST, steps: Sequence[int] | None = None) -> TakenMatrices:
    """Read those snapshots, or those of these `steps`, each block once.

    Raises ValueError for a step without one, StoreError where one is gone or damaged.
    """
    chosen = positions(store, most=most) if steps is None else np.unique([store.position_of(step) for step in steps])
    found = tuple(_packed(matrix) for matrix in store.snapshots.chosen([int(position) for position in chosen]))
    return TakenMatrices(np.asarray(store.snapshot_steps)[chosen], found)


def _packed(matrix: Float32[np.ndarray, "vocab dim"]) -> np.ndarray:
    """The upper halves of the numbers where the lower ones are 0, as in a store of bfloat16 precision; else a copy."""
    halves = np.ascontiguousarray(matrix).view(np.uint16).reshape(*matrix.shape, 2)
    lower, upper = (0, 1) if sys.byteorder == "little" else (1, 0)
    if halves[..., lower].any():
        return matrix.copy()
    return halves[..., upper].copy()
