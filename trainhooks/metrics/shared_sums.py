"""What the metrics of one record share of the centred output embedding, so that its Gram is summed once."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from trainhooks.metrics.base import State
from trainhooks.metrics.cached_by_shape import CachedByShape
from trainhooks.numerics.gram import mean_of_ids, without_rounding
from trainhooks.numerics.row_sums import RowSet, RowSums, _nan_where, sum_head
from trainhooks.probe.rows import SumsPass

_WANTED = "gram_wanted"


class RowsOfMask:
    """The `RowSet` of one mask, built at the first record, and again where the embedding's size or device changes."""

    def __init__(self, mask: Bool[Tensor, "mask"] | None) -> None:
        self._built = CachedByShape(lambda vocab, device: RowSet.build(torch.empty(vocab, 0, device=device), mask=mask))

    def of(self, embedding: Float[Tensor, "vocab dim"]) -> RowSet:
        """The rows of this embedding. Raises ValueError where the mask has another length."""
        return self._built.of(embedding)


def head_sums(state: State, rows: RowSet) -> RowSums:
    """The sums of the record's output embedding over `rows`: those that are there already, else made and left there."""
    key = _key(rows)
    if key not in state.shared:
        state.shared[key] = sum_head(state.output_embedding, rows)
    sums: RowSums = state.shared[key]
    return sums


def want_gram(state: State, wanted: bool = True) -> None:
    """Say, before a record's metrics are computed, whether one of them takes the Gram: then the first one makes it."""
    state.shared[_WANTED] = wanted


def gram_wanted(state: State) -> bool:
    """Whether `want_gram` has said so."""
    return bool(state.shared.get(_WANTED, False))


def head_mean(state: State, rows: RowSet) -> Float[Tensor, "dim"]:
    """The mean row of the record's output embedding over `rows`, without a Gram where none is there.

    Not finite where one of the rows is not.
    """
    if _key(rows) in state.shared:
        return head_sums(state, rows).mean_row
    key = ("head_mean", rows.key)
    if key not in state.shared:
        state.shared[key] = mean_of_ids(state.output_embedding, rows.ids)
    mean: Tensor = state.shared[key]
    return mean


def share_head_mean(state: State, rows: RowSet, mean: Float[Tensor, "dim"]) -> None:
    """Leave the mean row for `head_mean`, by who has seen that all rows are finite."""
    state.shared["head_mean", rows.key] = mean


def share_probe_sums(state: State, rows: RowSet, *, first: SumsPass) -> None:
    """Leave what an unweighted probe's first pass over the same rows has summed for the other metrics.

    The probe leaves rows out that are not finite; here one such row makes everything NaN, as in `sum_head`.
    """
    total = first.moments.at(0)
    gram = without_rounding(total.gram, mean=total.mean_x, count=rows.count, eps=total.eps)
    state.shared[_key(rows)] = _nan_where(total.rows != rows.count, mean_row=total.mean_x, gram=gram)


def initial_mean(state: State, rows: RowSet) -> Float[Tensor, "dim"]:
    """The mean row of the initial embedding over `rows`, computed once a record; the record's own at the first."""
    if state.initial_head is None:
        return head_mean(state, rows)
    key = ("initial_mean", rows.key)
    if key not in state.shared:
        state.shared[key] = mean_of_ids(state.initial_head.to(state.output_embedding.device), rows.ids)
    mean: Tensor = state.shared[key]
    return mean


def share_probe_pass(state: State, key: bytes, *, first: SumsPass) -> None:
    """Leave a probe's first pass, its first target -log(c/N), for who fits more columns to it; see `TargetRows.key`."""
    state.shared["probe_pass", key] = first


def shared_probe_pass(state: State, key: bytes) -> SumsPass | None:
    """The pass over these rows and counts that a probe has left, None where none has."""
    found: SumsPass | None = state.shared.get(("probe_pass", key))
    return found


def _key(rows: RowSet) -> Any:
    return ("head_sums", rows.key)
