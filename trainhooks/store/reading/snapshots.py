"""The output embeddings of a run as one sequence of matrices."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import numpy as np
from jaxtyping import Float32, Int64

from trainhooks.store.format.journal import JournalRecord

MAX_CACHED_BYTES = 2 * 1024**3


class Snapshots:
    """Matrices [vocab, dim] in order of steps: `len()`, `.steps`, `[i]`, and a loop over them.

    A chunk holds a whole block of snapshots, so reading one decodes all. `[i]` therefore keeps its neighbours in the
    block (as many as fit into 2 GiB), and going through the indices in order decodes each block once, or as few
    times as that allows. Each matrix is the caller's own copy. `folded` gives one row of a range of the folded
    snapshots, `shape` is a matrix's; `read` gives the folded snapshots of a range within a block, or only those that
    are listed; `check` is called after each read and raises where the store was cut meanwhile.
    """

    def __init__(
        self,
        folded: Callable[[slice, int], np.ndarray] | None,
        *,
        steps: np.ndarray,
        journal: Sequence[JournalRecord],
        block: int,
        shape: tuple[int, int],
        read: Callable[..., np.ndarray],
        check: Callable[[], None],
    ) -> None:
        self._array = folded
        self._journal = journal
        self._folded = len(steps) - len(journal)
        self._block, self._shape = block, shape
        self._read, self._check = read, check
        self._cache_start = 0
        self._cache: np.ndarray | None = None
        self.steps: Int64[np.ndarray, "snapshot"] = steps

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int | np.integer) -> Float32[np.ndarray, "vocab dim"]:
        position = operator.index(index)
        if not -len(self) <= position < len(self):
            raise IndexError(f"snapshot {position} of {len(self)}; indices are {-len(self)} to {len(self) - 1}.")
        position %= len(self)
        if position >= self._folded:
            return self._waiting(position)
        if self._cache is None or not 0 <= position - self._cache_start < len(self._cache):
            self._read_around(position)
        assert self._cache is not None
        matrix: np.ndarray = self._cache[position - self._cache_start].copy()
        return matrix

    def at(self, index: int) -> Float32[np.ndarray, "vocab dim"]:
        """The matrix at one position (0 and up), without keeping its neighbours in memory."""
        if index >= self._folded:
            return self._waiting(index)
        matrix: np.ndarray = self._read(index, index + 1)[0]
        self._check()
        return matrix

    def chosen(self, positions: Sequence[int]) -> Iterator[Float32[np.ndarray, "vocab dim"]]:
        """The matrices at some positions, which rise: each block is decoded once, and only what was chosen is held."""
        for block, inside in groupby((p for p in positions if p < self._folded), key=lambda p: p // self._block):
            only = list(inside)
            start = block * self._block
            found = self._read(start, min(start + self._block, self._folded), only)
            self._check()
            yield from found
        yield from (self._waiting(position) for position in positions if position >= self._folded)

    @property
    def block_of(self) -> Int64[np.ndarray, "snapshot"]:
        """The number of the block that each lies in: what is read together. One in the journal is alone."""
        places = np.arange(len(self))
        alone = -(-self._folded // self._block) + places - self._folded
        return np.where(places < self._folded, places // self._block, alone)

    def _waiting(self, index: int) -> np.ndarray:
        # copy: what lies in a single piece is the file itself, and read only
        return np.array(self._journal[index - self._folded].rows(slice(0, self._shape[0])))

    def path_of(self, token: int) -> Float32[np.ndarray, "snapshot dim"]:
        """One token's row at every snapshot; reads only the chunks that hold it."""
        rows = [record.rows(slice(token, token + 1)) for record in self._journal]
        if self._folded and self._array is not None:
            rows.insert(0, self._array(slice(self._folded), token))
            self._check()
        return np.concatenate(rows)

    def _read_around(self, position: int) -> None:
        """Cache the part of the block from `position` on, or all of it where it fits."""
        most = max(1, MAX_CACHED_BYTES // (4 * self._shape[0] * self._shape[1]))
        first = position // self._block * self._block
        start = first if most >= self._block else position
        stop = min(start + most, first + self._block, self._folded)
        self._cache = None  # before the next one is read, so that two are never held
        cache = self._read(start, stop)
        self._check()
        self._cache_start, self._cache = start, cache
