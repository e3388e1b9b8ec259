"""Distances and cosines to the final state, exact: of the output embedding, by token frequency, and by group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from trainhooks.core.variable import Variable
from trainhooks.metrics.group_convergence import HORIZON
from trainhooks.numerics.binning import count_bins, mean_by_bin
from trainhooks.numerics.gram import mean_of_ids
from trainhooks.numerics.movement import RowPairs, compare
from trainhooks.numerics.norms import ratio
from trainhooks.numerics.row_sums import RowSet
from trainhooks.probe.row_selection import RowSelection
from trainhooks.probe.target import Counts

BIN = "frequency_bin"
_CENTRED = f"both centred over the rows of the mask, exact; {HORIZON}"
_BINNED = f"bin b holds the tokens with corpus counts of 10^b up to 10^(b+1); {HORIZON}"

HEAD_VARIABLES = (
    Variable("convergence.head_distance_to_final", description=f"|E - E_T| / |E_T|, {_CENTRED}; NaN where E_T is 0"),
    Variable(
        "convergence.head_unit_distance_to_final",
        description=f"distance of E / |E| and E_T / |E_T|, in [0, 2], {_CENTRED}; NaN where either is 0",
    ),
    Variable("convergence.head_cosine_to_final", description=f"cos(E, E_T), {_CENTRED}; NaN where either is 0"),
)

GROUP_VARIABLES = (
    Variable(
        "convergence.exact_distance_to_final",
        ("group",),
        description=f"|theta_t - theta_T| / |theta_T|, exact; NaN where theta_T is 0; {HORIZON}",
    ),
    Variable(
        "convergence.exact_unit_distance_to_final",
        ("group",),
        description=f"distance of theta_t / |theta_t| and theta_T / |theta_T|, in [0, 2], exact; {HORIZON}",
    ),
    Variable(
        "convergence.exact_cosine_to_final",
        ("group",),
        description=f"cos(theta_t, theta_T), exact; NaN where either is 0; {HORIZON}",
    ),
)


def bin_variables(bins: int) -> tuple[Variable, ...]:
    """The variables by frequency bin [frequency_bin]; none without bins."""
    said = {
        "head_distance_to_final_by_bin": "|E - E_T| / |E_T| over the bin's centred rows; NaN in an empty bin",
        "head_cosine_to_final_by_bin": "mean over the bin's rows of a centred row's cosine to its final value",
        "head_row_norm_by_bin": "mean norm of the bin's centred rows",
    }
    if bins == 0:
        return ()
    return tuple(
        Variable(f"convergence.{name}", (BIN,), description=f"{text}; {_BINNED}", sizes={BIN: bins})
        for name, text in said.items()
    )


@dataclass(frozen=True)
class FinalRows:
    """The rows that count, `ids` (None: all), and each one's frequency bin [row], None without counts."""

    ids: Int[Tensor, "row"] | None
    bins: Int[Tensor, "row"] | None
    bin_count: int

    @classmethod
    def of(cls, selected: RowSelection | Counts | None) -> FinalRows:
        """Of a count for each row: the rows that the default metrics take. Raises ValueError where no token is left."""
        chosen = RowSelection.of(selected)
        if chosen.counts is None or chosen.mask is None:
            return cls(None, None, 0)
        rows = RowSet.of_mask(chosen.mask, device=torch.device("cpu"))
        bins = count_bins(chosen.counts)[chosen.mask]
        return cls(rows.ids, bins, int(bins.max()) + 1 if len(bins) else 0)

    @property
    def variables(self) -> tuple[Variable, ...]:
        """What `head_to_final` gives for these rows."""
        return (*HEAD_VARIABLES, *bin_variables(self.bin_count))


@torch.no_grad()
def head_to_final(
    head: Float[Tensor, "vocab dim"],
    final: Float[Tensor, "vocab dim"],
    rows: FinalRows,
    *,
    final_mean: Float[Tensor, "dim"] | None = None,
) -> dict[str, Tensor]:
    """Values for `rows.variables`, float64. One pass; equal matrices give distance 0 and cosine 1.

    `final_mean` is the mean of these rows of `final` by `mean_of_ids`, where it is known. NaN where an element is not
    finite. Source of the by-bin figures: arXiv 2509.26643 (frequent tokens converge first).
    """
    means = None if final_mean is None else [mean_of_ids(head, rows.ids), final_mean]
    pair = compare(head, [final], ids=rows.ids, means=means).pairs[0]
    whole = pair.movement()
    values = {
        "convergence.head_distance_to_final": ratio(whole.distance, whole.reference_norm),
        "convergence.head_unit_distance_to_final": unit_distance(
            whole.norm, whole.reference_norm, distance=whole.distance
        ),
        "convergence.head_cosine_to_final": whole.cosine,
    }
    return values | (_by_bin(pair, rows.bins, count=rows.bin_count) if rows.bins is not None else {})


def _by_bin(pair: RowPairs, bins: Tensor, *, count: int) -> dict[str, Tensor]:
    moved = mean_by_bin(pair.distances.double().square(), bins, count=count)
    final = mean_by_bin(pair.reference_norms.double().square(), bins, count=count)
    return {
        "convergence.head_distance_to_final_by_bin": ratio(moved, final).sqrt(),
        "convergence.head_cosine_to_final_by_bin": mean_by_bin(pair.cosines(), bins, count=count),
        "convergence.head_row_norm_by_bin": mean_by_bin(pair.norms, bins, count=count),
    }


def groups_to_final(
    squares: Float[Tensor, "group"], final_squares: Float[Tensor, "group"], *, apart: Float[Tensor, "group"]
) -> Mapping[str, Tensor]:
    """Values for `GROUP_VARIABLES` from |theta_t|^2, |theta_T|^2 and |theta_t - theta_T|^2 of each group, float64."""
    norm, final, distance = squares.sqrt(), final_squares.sqrt(), apart.sqrt()
    cosine = ratio((squares + final_squares - apart) / 2, norm * final).clamp(-1.0, 1.0)
    return {
        "convergence.exact_distance_to_final": ratio(distance, final),
        "convergence.exact_unit_distance_to_final": unit_distance(norm, final, distance=distance),
        "convergence.exact_cosine_to_final": cosine,
    }


def unit_distance(
    norm: Float[Tensor, "*shape"], other: Float[Tensor, "*shape"], *, distance: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """|x/|x| - y/|y|| in [0, 2] from |x|, |y| and |x - y|; NaN where either is 0.

    From the identity |x - y|^2 = (|x| - |y|)^2 + |x| |y| |x/|x| - y/|y||^2, which keeps the digits of small angles
    that 2 - 2 cos loses.
    """
    turned = (distance.square() - (norm - other).square()).clamp(min=0)
    return ratio(turned, norm * other).sqrt()
