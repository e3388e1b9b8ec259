"""A store's output embeddings as a checkpoint suite: each snapshot is a checkpoint of one tensor."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainhooks.checkpoints.base import CheckpointError, TensorEntry
from trainhooks.store import SNAPSHOT, Store, StoreError, open_store
from trainhooks.store.format.root import is_store as _is_store


def is_store(path: str) -> bool:
    """Whether a folder is a store of this package."""
    return _is_store(Path(path))


def snapshot_steps(path: str) -> tuple[int, ...]:
    """The steps of a store that have an output embedding, ascending. Raises ValueError where it has none."""
    steps = tuple(int(step) for step in open_store(path).snapshot_steps)
    if not steps:
        raise ValueError(f"the store {path} holds no output embeddings, only metrics. Record with snapshots.")
    return steps


def open_snapshot(path: str, *, step: int) -> SnapshotCheckpoint:
    """One snapshot of a store as a checkpoint. Raises CheckpointError where the store or the step cannot be read."""
    try:
        store = open_store(path)
    except StoreError as error:
        raise CheckpointError(str(error)) from error
    return SnapshotCheckpoint(store, step=step)


class SnapshotCheckpoint:
    """A `Checkpoint` of one tensor, `output_embedding` float32 [token, dim], as the store keeps it (rounded)."""

    def __init__(self, store: Store, *, step: int) -> None:
        places = np.flatnonzero(store.snapshot_steps == step)
        if len(places) == 0:
            raise CheckpointError(f"the store {store.where} has no output embedding of step {step}.")
        self.name = f"{store.where} step {step}"
        self.config: Mapping[str, object] = {}
        self._matrix = store.snapshots.at(int(places[0]))
        shape = tuple(int(size) for size in self._matrix.shape)
        self.tensors: Mapping[str, TensorEntry] = {
            SNAPSHOT: TensorEntry(SNAPSHOT, "float32", shape, SNAPSHOT, self._matrix.nbytes)
        }

    def read(self, key: str) -> Tensor:
        """The matrix, float32 [token, dim]. Raises CheckpointError for any other key."""
        self._check(key)
        return torch.from_numpy(self._matrix.copy())

    def identity(self, key: str, *, full: bool = False) -> str:
        """SHA-256 of the matrix, always in full. Raises CheckpointError for any other key."""
        self._check(key)
        return hashlib.sha256(np.ascontiguousarray(self._matrix).tobytes()).hexdigest()

    def _check(self, key: str) -> None:
        if key != SNAPSHOT:
            raise CheckpointError(f"{self.name} holds {SNAPSHOT} and nothing else; {key!r} was asked for.")
