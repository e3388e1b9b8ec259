"""What the metrics of one record share of the centred output embedding, so that its Gram is summed once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from trainhooks.metrics.base import State
from trainhooks.metrics.gram import check_rows, gram_of_ids, mean_of_ids, without_rounding
from trainhooks.metrics.target_rows import PerEmbedding
from trainhooks.probe.rows import Pass


@dataclass(frozen=True)
class HeadRows:
    """The rows that a mask keeps: their ids on the embedding's device (None: all), how many, and a key of the set.

    Two masks that keep the same rows have the same key, so what one metric has summed another can take.
    """

    ids: Int64[Tensor, "row"] | None
    count: int
    key: bytes

    @classmethod
    def build(cls, embedding: Float[Tensor, "vocab dim"], *, mask: Bool[Tensor, "mask"] | None) -> HeadRows:
        """Waits for the device where the mask lies on one: build it once. Raises ValueError for another length."""
        check_rows(embedding, mask=mask)
        mask = torch.ones(len(embedding), dtype=torch.bool) if mask is None else mask.cpu()
        return cls.of_mask(mask, device=embedding.device)

    @classmethod
    def of_mask(cls, mask: Bool[Tensor, "vocab"], *, device: torch.device) -> HeadRows:
        """The rows of a mask on the host that is as long as the embedding, which lies on `device`."""
        ids = None if bool(mask.all()) else mask.nonzero().flatten().to(device)
        return cls(ids=ids, count=int(mask.sum()), key=mask.numpy().tobytes())


class RowsOfMask:
    """The `HeadRows` of one mask, built at the first record, and again where the embedding's size or device changes."""

    def __init__(self, mask: Bool[Tensor, "mask"] | None) -> None:
        self._built = PerEmbedding(
            lambda vocab, device: HeadRows.build(torch.empty(vocab, 0, device=device), mask=mask)
        )

    def of(self, embedding: Float[Tensor, "vocab dim"]) -> HeadRows:
        """The rows of this embedding. Raises ValueError where the mask has another length."""
        return self._built.of(embedding)


@dataclass(frozen=True)
class HeadSums:
    """Mean row, and Gram of the rows about it, float64; all NaN where one of the rows is not finite.

    The Gram is exactly 0 where all rows are equal, up to their rounding.
    """

    mean_row: Float[Tensor, "dim"]
    gram: Float[Tensor, "dim dim"]


def sum_head(embedding: Float[Tensor, "vocab dim"], rows: HeadRows) -> HeadSums:
    """The sums of one embedding, from a pass of its own."""
    mean = mean_of_ids(embedding, rows.ids)
    gram = gram_of_ids(embedding, rows.ids, mean=mean)
    return _nan_unless(gram.isfinite().all(), mean_row=mean, gram=gram)


def head_sums(state: State, rows: HeadRows) -> HeadSums:
    """The sums of the record's output embedding over `rows`: those that are there already, else made and left there."""
    key = _key(rows)
    if key not in state.shared:
        state.shared[key] = sum_head(state.output_embedding, rows)
    return state.shared[key]


def share_probe_sums(state: State, rows: HeadRows, *, first: Pass) -> None:
    """Leave what an unweighted probe's first pass over the same rows has summed for the other metrics.

    The probe leaves rows out that are not finite; here one such row makes everything NaN, as in `sum_head`.
    """
    total = first.sums.total()
    gram = without_rounding(total.gram, mean=total.mean_x, count=rows.count, eps=first.sums.eps)
    state.shared[_key(rows)] = _nan_unless(first.finite.all(), mean_row=total.mean_x, gram=gram)


def initial_mean(state: State, rows: HeadRows) -> Float[Tensor, "dim"]:
    """The mean row of the initial embedding over `rows`, computed once a record; the record's own at the first."""
    if state.initial_head is None:
        return head_sums(state, rows).mean_row
    key = ("initial_mean", rows.key)
    if key not in state.shared:
        state.shared[key] = mean_of_ids(state.initial_head.to(state.output_embedding.device), rows.ids)
    return state.shared[key]


def share_probe_pass(state: State, key: bytes, *, first: Pass) -> None:
    """Leave a probe's first pass, its first target -log(c/N), for who fits more columns to it; see `TargetRows.key`."""
    state.shared["probe_pass", key] = first


def shared_probe_pass(state: State, key: bytes) -> Pass | None:
    """The pass over these rows and counts that a probe has left, None where none has."""
    found: Pass | None = state.shared.get(("probe_pass", key))
    return found


def _key(rows: HeadRows) -> Any:
    return ("head_sums", rows.key)


def _nan_unless(finite: Tensor, *, mean_row: Tensor, gram: Tensor) -> HeadSums:
    nan = torch.full((), float("nan"), dtype=gram.dtype, device=gram.device)
    return HeadSums(mean_row=torch.where(finite, mean_row, nan), gram=torch.where(finite, gram, nan))
