"""Average ranks and correlations on the device, without a wait: no size depends on the values."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

HOSTS = ("cpu",)


def average_ranks(values: Float[Tensor, "*batch row"]) -> Float[Tensor, "*batch row"]:
    """Ranks 1 ... rows along the last axis, in float64; ties get the mean of their ranks, NaN stays NaN."""
    if values.device.type not in HOSTS:
        return _searched_ranks(values)
    return _sorted_ranks(values).masked_fill_(values.isnan(), torch.nan)


def ranks_to_scale(values: Float[Tensor, "*batch row"]) -> Float64[Tensor, "*batch row"]:
    """`average_ranks` up to a factor and a constant, which is all that a correlation asks for; NaN ranks anywhere."""
    if values.device.type in HOSTS:
        return _sorted_ranks(values)
    ordered = values.sort(dim=-1).values
    below = torch.searchsorted(ordered, values)
    return torch.searchsorted(ordered, values, right=True).add_(below).double()


def _sorted_ranks(values: Tensor) -> Tensor:
    """`average_ranks`, but NaN ranks last."""
    wide = values.detach().double()
    order = torch.from_numpy(wide.numpy().argsort(-1))  # NumPy sorts float64 in a fifth of torch's time
    ordered = wide.gather(-1, order)
    again = torch.zeros_like(ordered, dtype=torch.bool)
    torch.eq(ordered[..., 1:], ordered[..., :-1], out=again[..., 1:])
    return torch.empty_like(wide).scatter_(-1, order, torch.from_numpy(_ranks_in_order(again.numpy())))


def _ranks_in_order(again: np.ndarray) -> np.ndarray:
    """Average ranks of ordered lines, from where a value is that before it again; ties are few."""
    rows = again.shape[-1]
    ranks = np.broadcast_to(np.arange(1.0, rows + 1), again.shape).copy()
    tied = np.flatnonzero(again)
    if tied.size:
        runs = np.flatnonzero(np.diff(tied, prepend=-1) != 1)
        first, alike = tied[runs] - 1, np.diff(runs, append=tied.size) + 1
        mean = first % rows + (alike + 1) / 2
        flat = ranks.reshape(-1)
        flat[first], flat[tied] = mean, np.repeat(mean, alike - 1)
    return ranks


def _searched_ranks(values: Tensor) -> Tensor:
    """The same in fewer operations, for a device; a search takes longer than a scatter on the host."""
    lost = values.isnan()
    values = values.masked_fill(lost, torch.inf)  # a search must not meet NaN
    ordered = values.sort(dim=-1).values
    below = torch.searchsorted(ordered, values)
    ranks = torch.searchsorted(ordered, values, right=True).add_(below).double().add_(1).mul_(0.5)
    return ranks.masked_fill_(lost, torch.nan)


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
    both = torch.stack([a, b]).double()
    both = both - (mean := (w * both).sum(-1, keepdim=True) / total)
    square = (w * both.square()).sum(-1)
    # 0 where a side is constant but for rounding
    scale = (square * (square > rounding_square(mean, total)[..., 0])).sqrt().prod(0)
    return ((w * both[0] * both[1]).sum(-1) / scale).masked_fill(scale <= 0, torch.nan).clamp_(-1, 1)


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
    ranks = average_ranks(torch.stack([a, b]).masked_fill(~keep, torch.inf))
    return pearson(ranks[0], ranks[1], weights=keep.double())
