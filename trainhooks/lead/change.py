"""The centred change of the output embedding, a block of rows at a time: whole it would be one more matrix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

BLOCK = 2048  # rows that stay in a core's cache
AS_IT_IS = np.float32(1.0)
Blocks = Iterator[tuple[slice, np.ndarray]]


@runtime_checkable
class Matrix(Protocol):
    """An output embedding [vocab, dim], float32, that gives blocks of its rows: an array, or what reads them.

    A block need only hold until the next is taken.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Any: ...


class Change:
    """D = scale (E - E_0) over the rows of `ids` (None: all), its mean row taken off, as a shift of all rows moves no
    probability. It refers to both matrices and copies a block of rows at a time, float32.

    `scale` is a power of two, so that a product with it is exact.
    """

    def __init__(
        self,
        matrix: Matrix,
        *,
        first: Matrix,
        ids: Int[np.ndarray, "row"] | None = None,
        scale: np.float32 = AS_IT_IS,
    ) -> None:
        self._matrix, self._first, self._ids, self._scale = matrix, first, ids, scale
        self.shape = (len(first) if ids is None else len(ids), first.shape[1])
        total = np.zeros(self.shape[1])
        for where, block in self.moved():
            total += np.ones(where.stop - where.start, dtype=np.float32) @ block
        self._mean = (total / self.shape[0]).astype(np.float32)

    def __len__(self) -> int:
        return self.shape[0]

    def blocks(self) -> Blocks:
        """Blocks of the rows of D, in a buffer that may be worked in until the next."""
        for where, block in self.moved():
            yield where, np.subtract(block, self._mean, out=block)

    def moved(self) -> Blocks:
        """The same with the mean row still in it."""
        both = np.empty((2, min(BLOCK, self.shape[0]), self.shape[1]), dtype=np.float32)
        for where in slices(self.shape[0]):
            block, scaled = both[:, : where.stop - where.start]
            rows, before = (rows_of(matrix, self._ids, where) for matrix in (self._matrix, self._first))
            if self._scale >= 1:
                yield where, np.multiply(np.subtract(rows, before, out=block), self._scale, out=block)
            else:  # differences of such elements may be more than float32 holds
                np.multiply(rows, self._scale, out=block)
                yield where, np.subtract(block, np.multiply(before, self._scale, out=scaled), out=block)

    def whole(self) -> Float[np.ndarray, "row dim"]:
        """D, as large as the matrix."""
        return np.concatenate([block.copy() for _, block in self.blocks()])


Rows = Change | np.ndarray
"""A change, or one [row, dim] that lies in memory."""


def blocks_of(change: Rows) -> Blocks:
    """The rows of a change in blocks: of an array views of it."""
    if isinstance(change, Change):
        yield from change.blocks()
        return
    for where in slices(len(change)):
        yield where, change[where]


def slices(rows: int) -> Iterator[slice]:
    """The blocks that so many rows are worked on in."""
    for start in range(0, rows, BLOCK):
        yield slice(start, min(start + BLOCK, rows))


def rows_of(matrix: Matrix, ids: np.ndarray | None, where: slice) -> np.ndarray:
    """A block of the rows that count: a view where these are all."""
    rows: np.ndarray = matrix[where] if ids is None else matrix[ids[where]]
    return rows


def farthest_element(matrix: Matrix, ids: Int[np.ndarray, "row"] | None = None) -> float:
    """The largest absolute value in the rows that count; NaN where one is NaN."""
    largest = 0.0
    with np.errstate(invalid="ignore"):
        for where in slices(len(matrix) if ids is None else len(ids)):
            rows = rows_of(matrix, ids, where)
            largest = float(np.maximum(largest, np.maximum(rows.max(), -rows.min())))  # not of abs(): a copy
    return largest
