"""Row norms, movement and direction of the output embedding, whole and by token frequency."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from trainhooks.core.errors import SettingsError
from trainhooks.core.schedule import Schedule
from trainhooks.core.variable import Variable
from trainhooks.metrics.base import Metric, State
from trainhooks.metrics.shared_sums import RowsOfMask, head_sums, initial_mean
from trainhooks.numerics.binning import count_bins, mean_by_bin
from trainhooks.numerics.gram import (
    DEVICE_BLOCK,
    DEVICE_ELEMENTS,
    centred_blocks,
    kept_ids,
    mean_of_ids,
    row_count,
    square_sum,
    without_rounding,
    working_dtype,
)
from trainhooks.numerics.movement import Comparison, Movement, PairSums, compare
from trainhooks.numerics.norms import ratio
from trainhooks.numerics.row_sums import RowSet, RowSums
from trainhooks.numerics.similarity import cka_from_sums

LOOKED_AT = 64
_PART = " geometry."  # no variable's name: sums travel from a device with a record's values


@dataclass(frozen=True)
class KeptSums:
    """What is kept of a record for the next: its sums, and the norms of its centred rows."""

    sums: RowSums
    norms: Float[Tensor, "row"]


def movement(
    current: Float[Tensor, "vocab dim"],
    reference: Float[Tensor, "vocab_before dim_before"],
    *,
    mask: Bool[Tensor, "mask"] | None = None,
) -> Movement:
    """Movement from `reference` to `current` over the rows of the mask, each centred by its own mean row.

    Differences are taken element by element before they are squared, so that small steps keep their digits. A row that
    is zero in both counts as unmoved. NaN where an element is not finite.

    Raises ValueError where the shapes differ.
    """
    if current.shape != reference.shape:
        raise ValueError(
            f"movement from {tuple(reference.shape)} to {tuple(current.shape)}: both must have the same tokens as rows "
            "and the same dimensions."
        )
    ids = kept_ids(current, mask=mask)
    return compare(current, [reference], ids=ids, means=None).pairs[0].movement()


def row_norms(rows: Float[Tensor, "vocab dim"], *, mask: Bool[Tensor, "mask"] | None = None) -> Float[Tensor, "vocab"]:
    """Each centred row's Euclidean norm, float32 or wider; the mean is that of the mask, rows outside it have 0."""
    ids = kept_ids(rows, mask=mask)
    norms = [torch.linalg.vector_norm(block, dim=1) for _, (block,) in centred_blocks(rows, ids=ids)]
    return _by_id(torch.cat([rows.new_empty(0, dtype=working_dtype(rows)), *norms]), ids, rows=len(rows), outside=0.0)


def mean_row_norm(rows: Float[Tensor, "vocab dim"], *, mask: Bool[Tensor, "mask"] | None = None) -> Float[Tensor, ""]:
    """Mean norm of the centred rows of the mask, float64; NaN where there is no row or one is not finite."""
    count = row_count(rows, mask=mask)
    return row_norms(rows, mask=mask).sum(dtype=count.dtype) / count


def row_cosines(
    current: Float[Tensor, "vocab dim"],
    reference: Float[Tensor, "vocab_before dim_before"],
    *,
    mask: Bool[Tensor, "mask"] | None = None,
) -> Float[Tensor, "vocab"]:
    """Each centred row's cosine to the same row of `reference`, in [-1, 1].

    NaN where either is zero, and for rows outside the mask.
    """
    ids = kept_ids(current, mask=mask)
    cosines = compare(current, [reference], ids=ids, means=None).pairs[0].cosines()
    return _by_id(cosines, ids, rows=len(current), outside=float("nan"))


class HeadGeometry(Metric):
    """Norms and movement of the output embedding, exact, its mean row subtracted.

    `mask` [vocab] keeps the rows that count (None: all; padding should be left out). With `counts` [vocab] mean norm
    and cosine to initial are also given by log-spaced bins of the token's count (powers of 10). At the first record,
    what compares with the previous one is NaN, and the initial one is this one. An embedding whose rows are all equal
    has row norm 0 and NaN for cosines and ratios; one that is not finite has NaN.

    The Gram of this record's rows is shared with the other metrics, and that of the previous record is kept (d x d),
    so that CKA costs one product. Where what was kept is not of `previous_head` (another schedule, a float64 head,
    an accelerator, where asking would wait for the device), it is summed again.

    Raises ValueError, when computed, where `mask` or `counts` has another length than the embedding.
    """

    needs = frozenset({"initial_head", "previous_head"})

    def __init__(
        self,
        *,
        mask: Bool[Tensor, "mask"] | None = None,
        counts: Int[Tensor, "vocab"] | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        self.mask = mask
        self.schedule = schedule
        self._rows = RowsOfMask(mask)
        self._kept: list[tuple[int, KeptSums]] = []
        self.bins = None if counts is None else count_bins(counts)
        self.bin_count = 0 if self.bins is None else int(self.bins.max()) + 1
        self.variables = HEAD_VARIABLES + (_bin_variables(self.bin_count) if self.bin_count else ())

    @torch.no_grad()
    def compute(self, state: State) -> Mapping[str, Tensor | float]:
        """Float64 values on the embedding's device."""
        parts, by_count = self._measure(state)
        return {**_figures(parts), **by_count}

    @torch.no_grad()
    def enqueue(self, state: State) -> Mapping[str, Tensor | float]:
        """On a device sums, which figures follow from on the host in fewer operations there."""
        return self.compute(state) if state.output_embedding.device.type == "cpu" else self.parts(state)

    def parts(self, state: State) -> dict[str, Tensor | float]:
        """What `conclude` makes the figures of."""
        parts, by_count = self._measure(state)
        return {**{_PART + name: value for name, value in parts.items()}, **by_count}

    def conclude(self, values: dict[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """The figures of sums that have travelled."""
        parts = {name: torch.from_numpy(values.pop(name)) for name in list(values) if name.startswith(_PART)}
        if not parts:
            return values
        found = _figures({name.removeprefix(_PART): value for name, value in parts.items()})
        return values | {name: np.asarray(value) for name, value in found.items()}

    def working_bytes(self, weight: Tensor) -> int:
        """A block of rows of each of three embeddings, float32 or as wide as the embedding, and three Grams.

        On the host five of these, since a product is added up beside its sum, and 30 numbers a row.
        """
        rows, dim = weight.shape
        if weight.device.type == "cpu":
            return 8 * (5 * dim * dim + 30 * rows)
        block = min(rows * dim, max(DEVICE_BLOCK * dim, DEVICE_ELEMENTS))
        return 3 * (max(4, weight.element_size()) * block + 8 * dim * dim)

    def takes_gram(self, step: int) -> bool:
        """Always: CKA is made of it."""
        return True

    def sent_bytes(self, weight: Tensor) -> int:
        """The sums over rows, from a device."""
        return 0 if weight.device.type == "cpu" else 8 * 128

    def _measure(self, state: State) -> tuple[dict[str, Tensor], dict[str, Tensor | float]]:
        """Sums that the figures follow from, and what is given by count."""
        head = state.output_embedding
        rows = self._rows.of(head)
        sums = head_sums(state, rows)
        found = self._compare(state, rows, sums)
        parts = {"products": PairSums.of(found.stacked).products}
        if found.previous is not None:
            assert found.cross is not None
            grams = (found.cross, sums.gram, found.previous.gram)
            parts["energies"] = torch.stack([square_sum(gram) for gram in grams])
        self._kept.append((state.step, KeptSums(sums, found.norms)))
        return parts, self._by_count(found, rows=rows, vocab=len(head))

    def state_dict(self) -> dict[str, Any]:
        """The sums of the last record, which the next one is compared with."""
        return {
            "kept": [
                (step, kept.sums.mean_row.cpu(), kept.sums.gram.cpu(), kept.norms.cpu()) for step, kept in self._kept
            ]
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._kept = [
            (int(step), KeptSums(RowSums(mean_row=mean, gram=gram), norms)) for step, mean, gram, norms in state["kept"]
        ]

    def _compare(self, state: State, rows: RowSet, sums: RowSums) -> Comparison:
        """To the initial head, and to the previous one with the sums that belong to it."""
        head = state.output_embedding
        initial = head if state.initial_head is None else state.initial_head
        self._kept = [(step, kept) for step, kept in self._kept if step < state.step][-1:]
        means = [sums.mean_row, initial_mean(state, rows)]
        if state.previous_head is None:
            return compare(head, [initial], ids=rows.ids, means=means)
        heads = [initial, state.previous_head]
        kept = self._kept[0][1] if self._kept and head.device.type == "cpu" else None
        if kept is not None and _looks_kept(state.previous_head, rows, kept):
            found = compare(head, heads, ids=rows.ids, means=[*means, kept.sums.mean_row], cross=True)
            # the same rows about the same mean have the same norms, to the bit
            if torch.equal(found.pairs[1].reference_norms, kept.norms):
                return replace(found, previous=kept.sums)
        mean = mean_of_ids(state.previous_head.to(head.device), rows.ids)
        found = compare(head, heads, ids=rows.ids, means=[*means, mean], cross=True, last_gram=True)
        assert found.last_gram is not None
        eps = torch.finfo(working_dtype(state.previous_head)).eps
        gram = without_rounding(found.last_gram, mean=mean, count=rows.count, eps=eps)
        return replace(found, previous=RowSums(mean_row=mean, gram=gram))

    def _by_count(self, found: Comparison, *, rows: RowSet, vocab: int) -> dict[str, Tensor | float]:
        if self.bins is None or self.bin_count == 0:
            return {}
        if len(self.bins) != vocab:
            raise SettingsError(
                f"counts have {len(self.bins)} entries; the output embedding has {vocab} rows. "
                "Pass one count for each row, 0 for padding."
            )
        bins = self.bins.to(found.norms.device)
        bins = bins if rows.ids is None else bins[rows.ids]
        return {
            "geometry.row_norm_by_count": mean_by_bin(found.norms, bins, count=self.bin_count),
            "geometry.cosine_to_initial_by_count": mean_by_bin(found.pairs[0].cosines(), bins, count=self.bin_count),
        }


HEAD_VARIABLES = (
    Variable("geometry.row_norm", description="mean norm of the output embedding's centred rows"),
    Variable("geometry.distance_to_initial", description="|E - E_0| / |E_0|, both centred; NaN where E_0 is 0"),
    Variable("geometry.cosine_to_initial", description="<E, E_0> / (|E| |E_0|), both centred"),
    Variable("geometry.relative_step", description="|E - E_previous| / |E|, both centred; NaN at the first record"),
    Variable("geometry.radial_step", description="part of relative_step that changes row norms"),
    Variable(
        "geometry.angular_step",
        description="part of relative_step that turns rows; radial_step^2 + angular_step^2 = relative_step^2",
    ),
    Variable("geometry.cosine_to_previous", description="<E, E_previous> / (|E| |E_previous|), both centred"),
    Variable("geometry.cka_to_previous", description="debiased linear CKA of E and E_previous"),
)


def _bin_variables(count: int) -> tuple[Variable, ...]:
    said = {
        "geometry.row_norm_by_count": "mean norm of centred rows",
        "geometry.cosine_to_initial_by_count": "mean over rows of the cosine to the row's initial value, centred",
    }
    where = "by corpus count; bin b holds counts of 10^b up to 10^(b+1)"
    return tuple(
        Variable(
            name,
            dims=("count_bin",),
            description=f"{text}, {where}",
            sizes={"count_bin": count},
            labels=tuple(f"1e{decade}" for decade in range(count)),
        )
        for name, text in said.items()
    )


def _looks_kept(previous: Tensor, rows: RowSet, kept: KeptSums) -> bool:
    """Whether some rows have the norms that were kept: of another record they have not, and a pass is saved."""
    some = previous[:LOOKED_AT] if rows.ids is None else previous.index_select(0, rows.ids[:LOOKED_AT])
    centred = some.to(kept.norms.dtype) - kept.sums.mean_row.to(kept.norms.dtype)
    norms = torch.linalg.vector_norm(centred, dim=1)
    return torch.allclose(norms, kept.norms[: len(norms)], rtol=1e-6, atol=0.0, equal_nan=True)


def _figures(parts: Mapping[str, Tensor]) -> dict[str, Tensor | float]:
    """The figures that follow from sums, wherever they lie; "energies" are there where there is a previous record."""
    sums = PairSums(parts["products"])
    since = sums.movement(0)
    values: dict[str, Tensor | float] = {
        "geometry.row_norm": sums.mean_norm(),
        "geometry.distance_to_initial": ratio(since.distance, since.reference_norm),
        "geometry.cosine_to_initial": since.cosine,
    }
    if "energies" not in parts:
        return values
    step = sums.movement(1)
    return values | {
        "geometry.relative_step": ratio(step.distance, step.norm),
        "geometry.radial_step": ratio(step.radial, step.norm),
        "geometry.angular_step": ratio(step.angular, step.norm),
        "geometry.cosine_to_previous": step.cosine,
        "geometry.cka_to_previous": cka_from_sums(sums.grams(1, energies=parts["energies"])),
    }


def _by_id(values: Tensor, ids: Tensor | None, *, rows: int, outside: float) -> Tensor:
    return values if ids is None else values.new_full((rows,), outside).index_copy_(0, ids, values)
