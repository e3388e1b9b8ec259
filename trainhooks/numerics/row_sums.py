"""Sums over an output embedding's rows that several metrics need, from one pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from trainhooks.numerics.gram import check_rows, gram_of_ids, mean_of_ids


@dataclass(frozen=True)
class RowSet:
    """The rows that a mask keeps: their ids on the embedding's device (None: all), how many, and a key of the set.

    Two masks that keep the same rows have the same key, so what one metric has summed another can take.
    """

    ids: Int64[Tensor, "row"] | None
    count: int
    key: bytes

    @classmethod
    def build(cls, embedding: Float[Tensor, "vocab dim"], *, mask: Bool[Tensor, "mask"] | None) -> RowSet:
        """Waits for the device where the mask lies on one: build it once. Raises ValueError for another length."""
        check_rows(embedding, mask=mask)
        mask = torch.ones(len(embedding), dtype=torch.bool) if mask is None else mask.cpu()
        return cls.of_mask(mask, device=embedding.device)

    @classmethod
    def of_mask(cls, mask: Bool[Tensor, "vocab"], *, device: torch.device) -> RowSet:
        """The rows of a mask on the host that is as long as the embedding, which lies on `device`."""
        ids = None if bool(mask.all()) else mask.nonzero().flatten().to(device)
        return cls(ids=ids, count=int(mask.sum()), key=mask.numpy().tobytes())


@dataclass(frozen=True)
class RowSums:
    """Mean row, and Gram of the rows about it, float64; all NaN where one of the rows is not finite.

    The Gram is exactly 0 where all rows are equal, up to their rounding.
    """

    mean_row: Float[Tensor, "dim"]
    gram: Float[Tensor, "dim dim"]


def sum_head(embedding: Float[Tensor, "vocab dim"], rows: RowSet) -> RowSums:
    """The sums of one embedding, from a pass of its own."""
    mean = mean_of_ids(embedding, rows.ids)
    gram = gram_of_ids(embedding, rows.ids, mean=mean)
    return _nan_where(~gram.isfinite().all(), mean_row=mean, gram=gram)


def _nan_where(lost: Tensor, *, mean_row: Tensor, gram: Tensor) -> RowSums:
    return RowSums(mean_row=mean_row.masked_fill(lost, torch.nan), gram=gram.masked_fill(lost, torch.nan))
