"""Ranks of a vector, ties at their mean."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Shaped


def mean_ranks(values: Shaped[np.ndarray, "entry"]) -> Float[np.ndarray, "entry"]:
    """1 for the least, NaN throughout where one is NaN: `scipy.stats.rankdata`, whose import takes longer than this."""
    if np.isnan(values).any():
        return np.full(len(values), np.nan)
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    found: np.ndarray = (np.cumsum(count) - (count - 1) / 2)[place]
    return found
