"""Squared distances between two lists of tensors, in slabs of bounded size, or between two tensors in one pass."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from trainhooks.numerics.norms import squared_norms
from trainhooks.numerics.row_blocks import rows_read

SLAB = 1 << 22
BLOCK = 1 << 19
"""Elements that a core's cache holds three times, of float32."""
ROW = 1 << 10


def squared_distances(tensors: Sequence[Tensor], references: Sequence[Tensor]) -> Float[Tensor, "tensor"]:
    """|theta - reference|^2 of each pair, on the first tensor's device; references may lie on the host.

    Differences are taken in float32 or wider, in slabs of at most 4 million elements, fused over the slabs of a tensor.
    """
    totals = []
    for tensor, reference in zip(tensors, references, strict=True):
        sums = [squared_norms(torch._foreach_sub(*pair)).sum() for pair in _slabs(tensor, reference)]
        total = torch.stack(sums).sum() if sums else squared_norms([tensor])[0]
        totals.append(total.to(tensors[0].device))
    return torch.stack(totals) if totals else squared_norms([])


def _slabs(tensor: Tensor, reference: Tensor) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    now, then = tensor.detach().reshape(-1), reference.reshape(-1)
    for piece, kept in zip(now.split(SLAB), then.split(SLAB), strict=True):
        if piece.numel():
            yield [_wide(piece)], [_wide(kept.to(piece.device, non_blocking=True))]


def _wide(piece: Tensor) -> Tensor:
    return piece.float() if piece.dtype in (torch.float16, torch.bfloat16) else piece


class PairSums:
    """Squared norms and distances of tensors on the host that are gone through once, in blocks that a cache holds.

    What else is wanted of the numbers is done with the blocks, while they are there. Half precision is read as float32,
    float64 as itself where both are. Of rows of 1,024 elements norms are taken, whose squares add up in float64.
    """

    def __init__(self) -> None:
        self._room = torch.empty(2, BLOCK, dtype=torch.float32, device="cpu")

    def blocks(
        self, values: Tensor, reference: Tensor, *, squares: PairSquares
    ) -> Iterator[tuple[int, Float[Tensor, "element"]]]:
        """`values` as they are, flat, block by block, each with the index of its first element; `squares` gets what
        both are once all have been taken."""
        wide = torch.float64 if values.dtype == reference.dtype == torch.float64 else torch.float32
        room = self._room.to(wide)
        norms: tuple[list[Tensor], ...] = ([], [], [])
        pairs = zip(values.reshape(-1).split(BLOCK), reference.reshape(-1).split(BLOCK), strict=True)
        for number, (now, then) in enumerate(pairs):
            mine, own = room[:, : len(now)]
            x, y = _as_wide(now, into=mine), _as_wide(then, into=own)
            norms[0].extend(_row_norms(x))
            if squares.reference is None:
                norms[1].extend(_row_norms(y))
            norms[2].extend(_row_norms(torch.sub(x, y, out=own)))
            rows_read(then, None, slice(0, len(then)))
            yield number * BLOCK, now
        squares.values, squares.apart = _squared(norms[0]), _squared(norms[2])
        if squares.reference is None:
            squares.reference = _squared(norms[1])


@dataclass
class PairSquares:
    """|x|^2, |y|^2 (known before, or None) and |x - y|^2 of a pair, float64."""

    reference: float | None = None
    values: float = math.nan
    apart: float = math.nan


def _as_wide(block: Tensor, *, into: Tensor) -> Tensor:
    """The block, copied only where it has another type."""
    return block if block.dtype == into.dtype else into.copy_(block)


def _row_norms(block: Tensor) -> Iterator[Tensor]:
    whole = len(block) // ROW * ROW
    for part in (block[:whole].view(-1, ROW), block[whole:].view(1, -1)):
        if part.numel():
            yield torch.linalg.vector_norm(part, dim=1)


def _squared(norms: list[Tensor]) -> float:
    return float(torch.cat(norms).double().square_().sum()) if norms else 0.0
