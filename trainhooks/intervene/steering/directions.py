"""Directions to move a row of the output embedding in, and the references they stand beside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

SOLVED = ("elementwise", "saliency", "least_norm", "least_spread", "logit_bias")
"""Directions whose scale is found by root search; the first three are made from the probe's slope."""
BASELINES = ("random_norm", "random_shift")
"""Random directions with the norm, and with the mean logit shift, of the solved least-norm edit."""
_RIDGE = 1e-6


@dataclass(frozen=True)
class EditDirection:
    """`vector` [dim], of which a scale c adds c times to a row; None for the plain logit bias, where c is added to
    the logit itself. `ridge` is what was added to the covariance's diagonal, relative to its mean (0: none)."""

    name: str
    vector: Float64[Tensor, "dim"] | None
    ridge: float = 0.0

    def shift(self, hidden: Float[Tensor, "position dim"]) -> Float64[Tensor, "position"]:
        """How far a scale of 1 moves the logit at each position: h.u, or 1."""
        if self.vector is None:
            return torch.ones(len(hidden), dtype=torch.float64)
        return (hidden @ self.vector.to(hidden.dtype)).double()


def make_directions(
    names: Sequence[str],
    *,
    slope: Float64[Tensor, "dim"],
    weight: Float[Tensor, "vocab dim"],
    hidden: Float[Tensor, "position dim"],
) -> list[EditDirection]:
    """The directions of `SOLVED` named, in that order; a scale of log r is what the log-linear encoding predicts for r.

    Those made of the slope A follow E' = E - log(r) * Omega * A^-1 with element-wise inverse and weights Omega that
    sum to 1, so that A . u = -1: `elementwise` has equal weights (tiny A_i make it long), `saliency` weights
    |A_i| std(E_i), `least_norm` weights A_i^2 / |A|^2, which give -A / |A|^2, the shortest of all. `least_spread` is
    C^-1 mu / (mu' C^-1 mu), mean mu and covariance C of the hidden states, plus a ridge of 1e-6 of its mean diagonal:
    the logit shift of mean 1 that varies least. Behind a LayerNorm with bias that is a logit bias in another guise.

    Raises ValueError for an unknown name, and for a slope of zeros where an element-wise inverse is asked for.
    """
    unknown = [name for name in names if name not in SOLVED]
    if unknown:
        raise ValueError(f"there is no direction {unknown[0]!r}: take some of {', '.join((*SOLVED, *BASELINES))}.")
    from_slope = set(names) & {"elementwise", "saliency", "least_norm"}
    if from_slope and not bool((slope != 0).any()):
        raise ValueError(f"the probe's slope is zero, so {sorted(from_slope)} are not defined: all rows are equal.")
    made: list[EditDirection] = []
    for name in SOLVED:
        if name not in names:
            continue
        if name == "logit_bias":
            made.append(EditDirection(name, None))
        elif name == "least_spread":
            made.append(EditDirection(name, least_spread(hidden), _RIDGE))
        else:
            made.append(EditDirection(name, _from_slope(name, slope, weight)))
    return made


def least_spread(hidden: Float[Tensor, "position dim"]) -> Float64[Tensor, "dim"]:
    """u with mean(h.u) = 1 and the least variance of h.u, ridge 1e-6; the zero vector where mu is zero.

    Source: minimum-variance (Capon) solution u = C^-1 mu / (mu' C^-1 mu).
    """
    states = hidden.double()
    mean = states.mean(0)
    covariance = (states - mean).T @ (states - mean) / len(states)
    covariance += _RIDGE * covariance.diagonal().mean().clamp_min(1e-30) * torch.eye(len(mean), dtype=torch.float64)
    solved = torch.linalg.solve(covariance, mean)
    gain = mean @ solved
    return solved / gain if bool(gain > 0) else torch.zeros_like(mean)


def random_directions(dim: int, *, draws: int, seed: int) -> Float64[Tensor, "draw dim"]:
    """Unit vectors, uniform on the sphere, from a generator of their own."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(draws, dim, generator=generator, dtype=torch.float64)
    directions: Tensor = drawn / drawn.norm(dim=1, keepdim=True)
    return directions


def _from_slope(name: str, slope: Tensor, weight: Tensor) -> Tensor:
    if name == "least_norm":
        return -slope / slope.square().sum()
    omega = torch.ones_like(slope) if name == "elementwise" else slope.abs() * weight.double().std(0)
    used = slope != 0  # a dimension without slope has no inverse: it gets no weight
    omega = torch.where(used, omega, 0.0)
    return -torch.where(used, omega / omega.sum() / slope, 0.0)
