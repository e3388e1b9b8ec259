"""Intervals from documents drawn again with replacement."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor


def document_draws(documents: int, *, draws: int, seed: int) -> Float64[Tensor, "draw document"]:
    """How often each document is taken in each bootstrap draw."""
    generator = np.random.default_rng(seed)
    return torch.from_numpy(generator.multinomial(documents, np.full(documents, 1 / documents), size=draws)).double()


def log_ratio_draws(
    sums: Float64[Tensor, "edit document"],
    old_sums: Float64[Tensor, "document"],
    counts: Float64[Tensor, "draw document"],
) -> Float64[Tensor, "edit draw"]:
    """log(mean P' / mean P) over resampled documents."""
    return (sums @ counts.T).log() - (counts @ old_sums).log()


def interval(values: Float64[Tensor, "*any draw"], *, level: float = 0.95) -> Float64[Tensor, "2 *any"]:
    """The percentile interval along the last axis; NaN where a value is."""
    tail = (1 - level) / 2
    return torch.quantile(values, torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=-1)
