"""Row norms, movement and direction of the output embedding, whole and by token frequency."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from trainhooks.metrics.base import Metric, State
from trainhooks.metrics.gram import centred_blocks, row_count
from trainhooks.metrics.norms import accumulator
from trainhooks.metrics.similarity import linear_cka
from trainhooks.schedule import Schedule
from trainhooks.variable import Variable


@dataclass(frozen=True)
class Movement:
    """How one centred matrix X lies to another, Y. All are 0-d, float64, in the units of the matrices.

    `norm` = |X|_F, `reference_norm` = |Y|_F, `distance` = |X - Y|_F, `cosine` = <X, Y> / (|X| |Y|) in [-1, 1],
    NaN where either is zero. Row by row the distance splits exactly into a change of length and a turn,
    |x - y|^2 = (|x| - |y|)^2 + 2 |x| |y| (1 - cos(x, y)); summed over rows these are `radial`^2 and `angular`^2.
    """

    norm: Float[Tensor, ""]
    reference_norm: Float[Tensor, ""]
    distance: Float[Tensor, ""]
    cosine: Float[Tensor, ""]
    radial: Float[Tensor, ""]
    angular: Float[Tensor, ""]


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
    sums = torch.zeros(5, dtype=accumulator(current.device), device=current.device)
    for x, y in centred_blocks(current, reference.to(current.device), mask=mask):
        sums += torch.stack(_block_sums(x, y)).to(sums.dtype)
    xx, yy, dd, xy, radial = sums
    cosine = (xy / (xx.sqrt() * yy.sqrt())).clamp(-1.0, 1.0)
    return Movement(xx.sqrt(), yy.sqrt(), dd.sqrt(), cosine, radial.sqrt(), (dd - radial).clamp(min=0).sqrt())


def row_norms(rows: Float[Tensor, "vocab dim"], *, mask: Bool[Tensor, "mask"] | None = None) -> Float[Tensor, "vocab"]:
    """Each centred row's Euclidean norm, float32 or wider; the mean is that of the mask, rows outside it have 0."""
    norms = [torch.linalg.vector_norm(block, dim=1) for (block,) in centred_blocks(rows, mask=mask)]
    return torch.cat(norms) if norms else rows.new_zeros(0)


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
    pieces = []
    for x, y in centred_blocks(current, reference.to(current.device), mask=mask):
        norms = torch.linalg.vector_norm(x, dim=1) * torch.linalg.vector_norm(y, dim=1)
        pieces.append(((x * y).sum(dim=1) / norms).clamp(-1.0, 1.0))
    return torch.cat(pieces) if pieces else current.new_zeros(0)


def count_bins(counts: Int[Tensor, "vocab"], *, bins_per_decade: int = 1) -> Int[Tensor, "vocab"]:
    """Log-spaced bins of token counts: bin b holds counts c with 10^(b/n) <= c < 10^((b+1)/n); -1 where c < 1.

    Raises ValueError where n = `bins_per_decade` is below 1.
    """
    if bins_per_decade < 1:
        raise ValueError(f"{bins_per_decade} bins a decade of counts: pass 1 or more.")
    edges = torch.tensor([10.0 ** (b / bins_per_decade) for b in range(19 * bins_per_decade)], dtype=torch.float64)
    return torch.bucketize(counts.double().cpu(), edges, right=True).to(counts.device) - 1


def mean_by_bin(values: Float[Tensor, "vocab"], bins: Int[Tensor, "vocab"], *, count: int) -> Float[Tensor, "bin"]:
    """Mean of the values in each of bins 0 ... `count` - 1, float64; NaN in an empty bin.

    Values that are NaN (rows without a direction) and rows in bin -1 are left out. Adds in a fixed order, so that
    repeated calls agree to the bit on every device.
    """
    wide = values.to(accumulator(values.device))
    known = ~wide.isnan()
    # one bin at a time: scattered additions come in any order on an accelerator
    means = []
    for b in range(count):
        inside = known & (bins == b)
        means.append(torch.where(inside, wide, torch.zeros_like(wide)).sum() / inside.sum())
    return torch.stack(means) if means else wide.new_zeros(0)


class HeadGeometry(Metric):
    """Norms and movement of the output embedding, exact, its mean row subtracted.

    `mask` [vocab] keeps the rows that count (None: all; padding should be left out). With `counts` [vocab] mean norm
    and cosine to initial are also given by log-spaced bins of the token's count (powers of 10). At the first record,
    what compares with the previous one is NaN, and the initial one is this one. An embedding whose rows are all equal
    has row norm 0 and NaN for cosines and ratios; one that is not finite has NaN. CKA is most of the cost, three
    d x d products over all rows: give `schedule` where that is too much.

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
        self.bins = None if counts is None else count_bins(counts)
        self.bin_count = 0 if self.bins is None else int(self.bins.max()) + 1
        self.variables = HEAD_VARIABLES + (_bin_variables(self.bin_count) if self.bin_count else ())

    def compute(self, state: State) -> Mapping[str, Tensor | float]:
        """Float64 values on the embedding's device."""
        head = state.output_embedding
        initial = head if state.initial_head is None else state.initial_head
        since = movement(head, initial, mask=self.mask)
        values: dict[str, Tensor | float] = {
            "geometry.row_norm": mean_row_norm(head, mask=self.mask),
            "geometry.distance_to_initial": ratio(since.distance, since.reference_norm),
            "geometry.cosine_to_initial": since.cosine,
        }
        if state.previous_head is not None:
            step = movement(head, state.previous_head, mask=self.mask)
            values |= {
                "geometry.relative_step": ratio(step.distance, step.norm),
                "geometry.radial_step": ratio(step.radial, step.norm),
                "geometry.angular_step": ratio(step.angular, step.norm),
                "geometry.cosine_to_previous": step.cosine,
                "geometry.cka_to_previous": linear_cka(head, state.previous_head, mask=self.mask),
            }
        return values | self._by_count(head, initial)

    def _by_count(self, head: Tensor, initial: Tensor) -> dict[str, Tensor | float]:
        if self.bins is None or self.bin_count == 0:
            return {}
        if len(self.bins) != len(head):
            raise ValueError(
                f"counts have {len(self.bins)} entries; the output embedding has {len(head)} rows. "
                "Pass one count for each row, 0 for padding."
            )
        bins = self.bins.to(head.device)
        if self.mask is not None:
            bins = torch.where(self.mask.to(head.device), bins, torch.full_like(bins, -1))
        norms, cosines = row_norms(head, mask=self.mask), row_cosines(head, initial, mask=self.mask)
        return {
            "geometry.row_norm_by_count": mean_by_bin(norms, bins, count=self.bin_count),
            "geometry.cosine_to_initial_by_count": mean_by_bin(cosines, bins, count=self.bin_count),
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


def ratio(value: Float[Tensor, "*shape"], norm: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
    """value / norm, and NaN (never inf) where the norm is 0."""
    return torch.where(norm > 0, value / norm, torch.full_like(value, float("nan")))


def _bin_variables(count: int) -> tuple[Variable, ...]:
    said = {
        "geometry.row_norm_by_count": "mean norm of centred rows",
        "geometry.cosine_to_initial_by_count": "mean over rows of the cosine to the row's initial value, centred",
    }
    where = "by corpus count; bin b holds counts of 10^b up to 10^(b+1)"
    return tuple(
        Variable(name, dims=("count_bin",), description=f"{text}, {where}", sizes={"count_bin": count})
        for name, text in said.items()
    )


def _block_sums(x: Tensor, y: Tensor) -> list[Tensor]:
    """|x|^2, |y|^2, |x - y|^2, <x, y> and the squared change of row norms, over a block."""
    difference = x - y
    lengths = torch.linalg.vector_norm(x, dim=1) + torch.linalg.vector_norm(y, dim=1)
    # |x| - |y| = (x - y).(x + y) / (|x| + |y|): no digits lost to two nearly equal norms
    change = (difference * (x + y)).sum(dim=1) / lengths
    change = torch.where(lengths > 0, change, torch.zeros_like(change))
    change = torch.where(lengths.isnan(), lengths, change)
    return [x.square().sum(), y.square().sum(), difference.square().sum(), (x * y).sum(), change.square().sum()]
