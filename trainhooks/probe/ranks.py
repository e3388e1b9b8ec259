"""Average ranks and correlations on the device, without a wait: no size depends on the values."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def average_ranks(values: Float[Tensor, "*batch row"]) -> Float[Tensor, "*batch row"]:
    """Ranks 1 ... rows along the last axis, in float64; ties get the mean of their ranks, NaN stays NaN."""
    ordered, order = values.sort(dim=-1)
    position = torch.arange(values.shape[-1], device=values.device).expand(values.shape)
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    first = position.where(starts, 0).cummax(-1).values
    ends = starts.roll(-1, dims=-1)
    last = position.where(ends, values.shape[-1]).flip(-1).cummin(-1).values.flip(-1)
    ranks = torch.empty_like(values, dtype=torch.float64)
    ranks.scatter_(-1, order, (first + last).double() / 2 + 1)
    return ranks.masked_fill(values.isnan(), torch.nan)


def pearson(
    a: Float[Tensor, "*batch row"],
    b: Float[Tensor, "*batch row"],
    *,
    weights: Float[Tensor, "*#batch row"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Pearson's correlation along the last axis, in [-1, 1], in float64; rows weigh the same without `weights`.

    NaN where a side is constant (its spread is below the rounding of its own mean), has fewer than two rows, or
    holds NaN.
    """
    w = torch.ones_like(a[..., 0, :] if a.ndim > 1 else a, dtype=torch.float64) if weights is None else weights
    total = w.sum(-1, keepdim=True)
    a, a_square = _centred(a.double(), w, total)
    b, b_square = _centred(b.double(), w, total)
    scale = a_square.sqrt() * b_square.sqrt()
    return ((w * a * b).sum(-1) / scale).where(scale > 0, torch.nan).clamp(-1, 1)


def _centred(a: Tensor, w: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """The values about their weighted mean and their sum of squares, 0 where they are constant but for rounding."""
    mean = (w * a).sum(-1, keepdim=True) / total
    a = a - mean
    square = (w * a.square()).sum(-1)
    return a, square * (square > rounding_square(mean, total).squeeze(-1))


def rounding_square(mean: Tensor, weight: Tensor, *, eps: float = 2.0**-52) -> Tensor:
    """What rounding alone can put into a centred sum of squares: weight x (8 eps mean)^2."""
    return weight * (8 * eps * mean).square()


def spearman(
    a: Float[Tensor, "*batch row"],
    b: Float[Tensor, "*batch row"],
    *,
    keep: Bool[Tensor, "*#batch row"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Spearman's rank correlation along the last axis, in [-1, 1]: Pearson's of the average ranks, over `keep`.

    NaN as in `pearson`. Left-out rows are ranked behind all others, where they disturb no rank.
    """
    if keep is None:
        return pearson(average_ranks(a), average_ranks(b))
    a, b = a.masked_fill(~keep, torch.inf), b.masked_fill(~keep, torch.inf)
    return pearson(average_ranks(a), average_ranks(b), weights=keep.double())
