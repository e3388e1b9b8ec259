"""How far the output embedding has moved along token frequency, and how far in all: what the lead is made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from trainhooks.core.schedule import Schedule
from trainhooks.core.variable import Variable
from trainhooks.metrics.base import Metric, State
from trainhooks.metrics.cached_by_shape import CachedByShape
from trainhooks.metrics.shared_sums import head_mean, initial_mean
from trainhooks.numerics.gram import kept_ids, row_slices, working_dtype
from trainhooks.numerics.norms import accumulator
from trainhooks.numerics.products import exact_products
from trainhooks.numerics.row_blocks import shifted_blocks
from trainhooks.numerics.row_sums import RowSet
from trainhooks.probe.row_selection import RowSelection


@dataclass(frozen=True)
class FrequencyParts:
    """D = centred E - centred E_0 and its part along a centred target y, as D = y b' + rest.

    `frequency_part` b = D'y / y'y in the embedding's unit per nat, `change_norm` |D|_F, `frequency_share`
    |y|^2 |b|^2 / |D|^2 in [0, 1]. Share NaN where D is 0, part and share NaN where y is constant, all of them where
    an element is not finite.
    """

    frequency_part: Float[Tensor, "dim"]
    change_norm: Float[Tensor, ""]
    frequency_share: Float[Tensor, ""]


@torch.no_grad()
def frequency_parts(
    current: Float[Tensor, "vocab dim"],
    initial: Float[Tensor, "vocab_before dim_before"],
    y: Float[Tensor, "vocab"],
    *,
    mask: Bool[Tensor, "mask"] | None = None,
) -> FrequencyParts:
    """The parts of the change from `initial` to `current` over the rows of the mask; y may be NaN outside it.

    Raises ValueError where shapes differ or the mask has another length.
    """
    if current.shape != initial.shape:
        raise ValueError(
            f"the change from {tuple(initial.shape)} to {tuple(current.shape)}: both must have the same tokens as "
            "rows and the same dimensions."
        )
    ids = kept_ids(current, mask=mask)
    y = y.to(current.device) if ids is None else y.to(current.device)[ids]
    return parts_of_ids(current, initial.to(current.device), centred_target(y), ids=ids)


def centred_target(y: Float[Tensor, "row"]) -> Float[Tensor, "row"]:
    """y less its mean, float64; exactly 0 where all values are equal."""
    wide = y.to(accumulator(y.device))
    varies = (wide != wide[:1]).any()
    return torch.where(varies, wide - wide.mean(), torch.zeros_like(wide))


def parts_of_ids(
    current: Float[Tensor, "vocab dim"],
    initial: Float[Tensor, "vocab dim"],
    y: Float[Tensor, "row"],
    *,
    ids: Int64[Tensor, "row"] | None,
    mean_change: Float[Tensor, "dim"] | None = None,
) -> FrequencyParts:
    """`frequency_parts` for rows that are known by id (None: all) and their centred target, in one pass.

    Differences are taken element by element before they are squared, so that small changes keep their digits.
    `mean_change` is the mean row's change where it is known.
    """
    dtype, wide = working_dtype(current), accumulator(current.device)
    if mean_change is None:
        mean_change = _mean_change(current, initial, ids)
    along = torch.zeros(current.shape[1], dtype=wide, device=current.device)
    square = torch.zeros((), dtype=wide, device=current.device)
    weights, mean = y.to(dtype), mean_change.to(dtype)
    with exact_products(current.device.type):
        for where, change in _changes(current, initial, ids):
            # the mean goes last: equal elements then cancel exactly, however far from 0 they lie
            change.sub_(mean)
            square += torch.linalg.vector_norm(change, dim=1).to(wide).square().sum()
            along += (weights[where] @ change).to(wide)
    return _parts(along, square=square, target_square=y.square().sum())


class LeadParts(Metric):
    """The change of the output embedding since the first record along y = -log(c_w / N), and its size.

    With D(t) = centred E(t) - centred E(0) over the rows that the frequency probe takes: `lead.frequency_part`
    b(t) = D(t)'y_c / y_c'y_c, `lead.change_norm` |D(t)|, `lead.frequency_share` |y_c|^2 |b|^2 / |D|^2 in [0, 1].
    From b the progress of frequency is p_f = <b(t), b(T)> / |b(T)|^2. At the first record b and |D| are 0 and the
    share is NaN; see `FrequencyParts`. `counts`, `min_count`, `exclude`, `mask` and `vocab_size` as in
    `FrequencyProbe`.

    Raises ValueError for counts that do not fit the embedding, at the first record.
    """

    needs = frozenset({"initial_head"})
    variables = (
        Variable(
            "lead.frequency_part",
            ("dim",),
            unit="1/nat",
            description="b = D'y / y'y, D the change of the centred output embedding since the first record, "
            "y = -log(c/N) centred",
        ),
        Variable("lead.change_norm", description="|D|, Frobenius, D the change since the first record, centred"),
        Variable("lead.frequency_share", description="share of |D|^2 along y, |y|^2 |b|^2 / |D|^2, [0, 1]"),
    )

    def __init__(
        self,
        counts: Any,
        *,
        min_count: int = 1,
        exclude: Iterable[int] = (),
        mask: Bool[Tensor, "vocab"] | None = None,
        vocab_size: int | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        self.schedule = schedule
        self._selection = RowSelection.of(
            counts, min_count=min_count, exclude=exclude, mask=mask, vocab_size=vocab_size
        ).counted()
        self._prepared = CachedByShape(self._prepare)

    @torch.no_grad()
    def compute(self, state: State) -> Mapping[str, Tensor | float]:
        """Float64 values on the embedding's device."""
        head = state.output_embedding
        rows, y = self._prepared.of(head)
        initial = head if state.initial_head is None else state.initial_head.to(head.device)
        change = head_mean(state, rows) - initial_mean(state, rows)
        parts = parts_of_ids(head, initial, y, ids=rows.ids, mean_change=change)
        return {f"lead.{name}": value for name, value in vars(parts).items()}

    def _prepare(self, vocab: int, device: torch.device) -> tuple[RowSet, Tensor]:
        """What depends on counts alone."""
        chosen = self._selection.for_rows(vocab)
        assert chosen.target is not None
        rows = RowSet.of_mask(chosen.mask, device=device)
        return rows, centred_target(chosen.target[chosen.mask]).to(device)


def _mean_change(current: Tensor, initial: Tensor, ids: Tensor | None) -> Tensor:
    """The mean of the rows' differences, in float64."""
    total = torch.zeros(current.shape[1], dtype=accumulator(current.device), device=current.device)
    for _, change in _changes(current, initial, ids):
        total += change.sum(dim=0)
    return total / max(len(current) if ids is None else len(ids), 1)


def _changes(current: Tensor, initial: Tensor, ids: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of the rows' differences, in a buffer that may be worked in."""
    origin = torch.zeros(current.shape[1], dtype=working_dtype(current), device=current.device)
    slices = row_slices(current, ids=ids)
    for where, (block, before) in shifted_blocks(
        current.detach(), initial.detach(), shifts=[origin, origin], ids=ids, slices=slices
    ):
        yield where, block.sub_(before)


def _parts(along: Tensor, *, square: Tensor, target_square: Tensor) -> FrequencyParts:
    nan = torch.full((), float("nan"), dtype=along.dtype, device=along.device)
    known = square.isfinite()
    part = torch.where(known & (target_square > 0), along / target_square, nan)
    share = torch.where(square > 0, target_square * part.square().sum() / square, nan).clamp(max=1)
    return FrequencyParts(part, torch.where(known, square.sqrt(), nan), share)
