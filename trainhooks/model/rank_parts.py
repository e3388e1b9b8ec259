"""What one rank has of a tensor, and of the matrix' snapshots."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from torch import Tensor

SLAB = 1 << 20

Slices = Iterator[tuple[int, Tensor]]


@dataclass(frozen=True)
class LocalPart:
    """What this rank adds of a tensor of shape `shape`: `values`, which begin at `offset` in it."""

    values: Tensor
    offset: tuple[int, ...]
    shape: tuple[int, ...]

    def slices(self) -> Slices:
        """(first element's index in the whole, values): runs of elements that follow each other in the whole.

        A part of the columns comes as rows with zeros beside it, about a million elements at once: what is added up
        may take them as they are.
        """
        if self.values.numel() == 0:
            return
        width = prod(self.shape[1:])
        if self.values.shape[1:] == self.shape[1:]:
            yield (self.offset[0] if self.offset else 0) * width, self.values
            return
        inner = tuple(slice(o, o + n) for o, n in zip(self.offset[1:], self.values.shape[1:], strict=True))
        for first, rows in _blocks(self.values, rows=max(1, SLAB // max(1, width))):
            padded = rows.new_zeros(len(rows), *self.shape[1:])
            padded[(slice(None), *inner)] = rows
            yield (self.offset[0] + first) * width, padded


@dataclass(frozen=True)
class RowShard:
    """This rank's share of the matrix' snapshots: it writes `piece` of `pieces`, the rows `rows` (start, stop).

    A rank that has none, because others hold the same, is piece -1.
    """

    piece: int
    pieces: int
    rows: tuple[int, int]


def _blocks(values: Tensor, *, rows: int) -> Iterator[tuple[int, Tensor]]:
    for first in range(0, len(values), rows):
        yield first, values[first : first + rows]
