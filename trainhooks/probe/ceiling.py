"""What R^2 counting noise leaves in reach: the distribution of rates is estimated from the counts themselves."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from trainhooks.probe.target import as_counts, frequency_target

MOST_SMALL = 0.5
SMALL = 2
_SPLIT = 256  # counts above it are their rates to 6 %: 1/c is then the variance of log c
_GRID, _PASSES = 160, 400


def noise_ceiling(counts: Any, *, mask: Bool[Tensor, "vocab"] | None = None) -> float:
    """The R^2 on log counts that the true rates would reach, at most 1: 1 - E[Var(log c | rate, c >= m)] / Var(log c).

    Counts are Poisson, seen only from the smallest one in the mask, m, on. The distribution of the rates is the
    nonparametric maximum likelihood one (EM on a grid of log rates); above 256 the variance of log c is 1/c. Text is
    burstier than Poisson, so what is really in reach is less. No model of the rates passes it but by chance.

    NaN where more than half of the tokens were counted once or twice, which says too little of their rates; where all
    counts in the mask are equal, or none is in it. Not for counts that a model was trained on: it has seen the noise.
    Source: Robbins 1956 (empirical Bayes); Laird 1978, doi:10.1080/01621459.1978.10480103 (the EM).
    """
    values = as_counts(counts)
    y = frequency_target(values, mask=mask)
    kept = values[~y.isnan()]
    if small_share(values, mask=mask) > MOST_SMALL or len(kept) == 0 or bool((kept == kept[0]).all()):
        return float("nan")
    noise = _noise_of_large(kept[kept > _SPLIT]) + _noise_of_small(kept[kept <= _SPLIT], least=int(kept.min()))
    return 1 - noise / len(kept) / float(y[~y.isnan()].var(correction=0))


def small_share(counts: Any, *, mask: Bool[Tensor, "vocab"] | None = None) -> float:
    """The share, in [0, 1], of the tokens in the mask that were counted once or twice; NaN for an empty mask."""
    values = as_counts(counts)
    kept = values[values > 0 if mask is None else mask.cpu()]
    return float((kept <= SMALL).double().mean())


def _noise_of_large(counts: Int64[Tensor, "token"]) -> float:
    """The sum over tokens of Var(log c)."""
    return float((1 / counts.double()).sum())


def _noise_of_small(counts: Int64[Tensor, "token"], *, least: int) -> float:
    """The same where 1/c is not the variance: the expected one under the estimated distribution of rates."""
    if len(counts) == 0:
        return 0.0
    times = torch.bincount(counts, minlength=_SPLIT + 1)[least : _SPLIT + 1].double()
    log_rates = torch.linspace(math.log(0.02), math.log(2.0 * _SPLIT), _GRID, dtype=torch.float64)
    seen = _truncated(log_rates, least=least, most=_SPLIT)
    weights = torch.full((_GRID,), 1 / _GRID, dtype=torch.float64)
    for _ in range(_PASSES):
        weights = weights * (seen @ (times / (weights @ seen).clamp_min(1e-300))) / times.sum()
    return float(times.sum() * (weights @ _variance_of_log(log_rates, least=least)))


def _truncated(log_rates: Float64[Tensor, "rate"], *, least: int, most: int) -> Float64[Tensor, "rate count"]:
    """Poisson probabilities of the counts least ... most, given that the count is one of them."""
    counts = torch.arange(least, most + 1, dtype=torch.float64)
    logs = counts * log_rates[:, None] - log_rates.exp()[:, None] - torch.lgamma(counts + 1)
    return logs.softmax(1)


def _variance_of_log(log_rates: Float64[Tensor, "rate"], *, least: int) -> Float64[Tensor, "rate"]:
    """Var(log c | rate, c >= least) for each rate."""
    most = 4 * _SPLIT  # no rate of the grid reaches it
    shares, logs = _truncated(log_rates, least=least, most=most), torch.arange(least, most + 1).double().log()
    return (shares @ logs.square() - (shares @ logs).square()).clamp_min(0)
