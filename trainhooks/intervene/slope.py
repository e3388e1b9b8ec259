"""The slope of -log average output probability along the output embedding's dimensions."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from trainhooks.probe import fit_probe


def probability_slope(
    weight: Float[Tensor, "vocab dim"], alpha: Float64[Tensor, "vocab *target"], *, vocab_size: int
) -> Float64[Tensor, "*target dim"]:
    """The slope A [dim] of -log alpha = A . E + B over tokens below `vocab_size` with alpha > 0 in every target.

    Raises ValueError where no such token is left. Source: Cho et al. 2025, arXiv 2406.01468.
    """
    mask = alpha > 0 if alpha.ndim == 1 else (alpha > 0).all(1)
    mask[vocab_size:] = False
    y = torch.where(mask if alpha.ndim == 1 else mask[:, None], -alpha.log(), 0.0)
    return fit_probe(weight, y, mask=mask).slope
