"""Squared distances between two lists of tensors, in slabs of bounded size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from trainhooks.numerics.norms import squared_norms

SLAB = 1 << 22


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
