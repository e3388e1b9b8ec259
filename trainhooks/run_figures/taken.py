"""The output embeddings that figures are drawn from: a few of the run's, each block of the store read once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from trainhooks.lead.trajectory import thinned
from trainhooks.store import Store

SPREAD = 10
"""Records spread evenly over log(1 + step): each may cost a block."""
MOST = 32
KEPT_BYTES = 1536 * 1024**2
LEAST = 3


@dataclass(frozen=True)
class TakenMatrices:
    """Matrices of a run in memory, in order of steps: a trajectory (`trainhooks.lead.Trajectory`)."""

    steps: Int64[np.ndarray, "taken"]
    matrices: tuple[Float32[np.ndarray, "vocab dim"], ...]

    def __len__(self) -> int:
        return len(self.matrices)

    def __getitem__(self, index: int, /) -> Float32[np.ndarray, "vocab dim"]:
        return self.matrices[index]


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


def take(store: Store, *, most: int = MOST) -> TakenMatrices:
    """Read those snapshots, each block once. Raises StoreError where one is gone or damaged."""
    chosen = positions(store, most=most)
    found = tuple(store.snapshots.chosen([int(position) for position in chosen]))
    return TakenMatrices(np.asarray(store.snapshot_steps)[chosen], found)
