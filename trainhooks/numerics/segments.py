"""Sums over runs of rows: one operation on a device, whatever their number, and always added in the same order."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from jaxtyping import Float, Int64
from torch import Tensor

ONE_BY_ONE = ("cpu", "mps")
"""Devices where a loop is as fast, or the only way; scattered additions come in any order on the others."""


def segment_sums(values: Float[Tensor, "row *rest"], lengths: tuple[int, ...]) -> Float[Tensor, "segment *rest"]:
    """Sums over the rows of each segment; the segments follow each other and cover all rows. 0 for one without rows.

    What is not finite stays in its own segment. Nothing waits for a device but the first call with these lengths.
    """
    if not lengths:
        return values.new_zeros(0, *values.shape[1:])
    if all(length == 1 for length in lengths):
        return values
    if values.device.type in ONE_BY_ONE:
        return torch.stack([part.sum(0) for part in values.split(lengths)])
    on_device = _numbers(lengths, values.device)
    return torch.segment_reduce(values, "sum", lengths=on_device, axis=0, unsafe=True)


def gathered_sums(values: Float[Tensor, "row *rest"], members: Sequence[Sequence[int]]) -> Float[Tensor, "group *rest"]:
    """Sums over the rows that each group names; a row may stand in several groups. 0 for a group without any."""
    flat = tuple(i for held in members for i in held)
    if not flat:
        return values.new_zeros(len(members), *values.shape[1:])
    chosen = values.index_select(0, _numbers(flat, values.device))
    return segment_sums(chosen, tuple(map(len, members)))


@lru_cache(maxsize=1 << 12)
def _numbers(numbers: tuple[int, ...], device: torch.device) -> Int64[Tensor, "number"]:
    # a normal tensor even when first asked for under inference_mode: it is kept
    with torch.inference_mode(False):
        return torch.tensor(numbers, dtype=torch.int64, device="cpu").to(device)
