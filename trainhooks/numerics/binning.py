"""Tokens in bins of their corpus counts, and means over the bins."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from trainhooks.numerics.norms import accumulator


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
