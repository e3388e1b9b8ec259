"""In which order dimensions of an output embedding are deleted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from trainhooks.numerics.products import exact_products
from trainhooks.probe import fit_probe, probe_sums, saliency, unique_saliency
from trainhooks.probe.probability import probability_sums

ORDERS = ("ascending", "descending", "unique", "norm", "logit_variance")
RANDOM = "random"


@dataclass(frozen=True)
class Order:
    """A name, and every dimension once [dim], the first to be deleted first; `seed` of a random one, else None."""

    name: str
    dimensions: Int64[Tensor, "dim"]
    seed: int | None = None


@torch.no_grad()
def probability_slope(
    weight: Float[Tensor, "vocab dim"],
    hidden: Float[Tensor, "position dim"],
    *,
    bias: Float[Tensor, "vocab"] | None = None,
    mask: Bool[Tensor, "vocab"] | None = None,
) -> Float[Tensor, "dim"]:
    """The slope A [dim] of -log alpha ~ A . E_w + B over calibration contexts, in nats per unit of E.

    `mask` says which rows are tokens (padding stays out). Tokens whose alpha is 0 are left out.
    Source: Cho et al. 2025, arXiv 2406.01468. Raises ValueError as `fit_probe`.
    """
    log_alpha = probability_sums(weight, hidden, bias=bias).log_alpha
    usable = log_alpha.isfinite()
    inside = usable if mask is None else usable & mask.to(usable.device)
    return fit_probe(weight, -log_alpha.where(usable, 0), mask=inside).slope


@torch.no_grad()
def deletion_orders(
    weight: Float[Tensor, "vocab dim"],
    hidden: Float[Tensor, "position dim"],
    *,
    slope: Float[Tensor, "dim"],
    mask: Bool[Tensor, "vocab"] | None = None,
    names: tuple[str, ...] = ORDERS,
    random: int = 10,
    seed: int = 0,
) -> list[Order]:
    """The named orders, then `random` shuffles with seeds `seed`, `seed` + 1, ...

    `ascending` by saliency |A_i| std(E_i), the least salient first, which is the paper's claim; `descending` its
    reverse; `unique` by A_i^2 / [(E'E)^-1]_ii; `norm` by std(E_i); `logit_variance` by std(E_i)^2 mean(h_i^2), the
    variance over tokens of the part of the logits that dimension i makes, averaged over contexts. std is over the
    rows of the mask. Equal values are deleted by falling index, so that no tie is decided by a sort's whim.

    Shuffles come from an own CPU generator, the same on every device. Raises ValueError for an unknown name, no
    order at all, a slope or hidden states of another width.
    """
    dim = weight.shape[1]
    _check(names, random=random, dim=dim, slope=slope, hidden=hidden)
    total = probe_sums(weight, weight.new_zeros(len(weight)), mask=mask).total()
    spread = (total.gram.diagonal().clamp_min(0) / total.weight).sqrt()
    slope = slope.to(spread.device)
    scores = {
        "ascending": lambda: saliency(total, slope),
        "descending": lambda: -saliency(total, slope),
        "unique": lambda: unique_saliency(total, slope),
        "norm": lambda: spread,
        "logit_variance": lambda: spread.square() * hidden.double().square().mean(0).to(spread.device),
    }
    orders = [Order(name, rising(scores[name]())) for name in names]
    for number in range(seed, seed + random):
        generator = torch.Generator().manual_seed(number)
        shuffled = torch.randperm(dim, generator=generator).to(spread.device)
        orders.append(Order(RANDOM, shuffled, seed=number))
    return orders


def rising(score: Float[Tensor, "dim"]) -> Int64[Tensor, "dim"]:
    """Dimensions by rising score, equal ones by falling index. Scores that are not finite come last."""
    flipped = score.nan_to_num(nan=torch.inf).flip(0)
    return len(score) - 1 - flipped.argsort(stable=True)


@torch.no_grad()
def second_moment(hidden: Float[Tensor, "position dim"]) -> Float[Tensor, "dim dim"]:
    """M = mean of h h' over positions, not centred, float64 [dim, dim]. Raises ValueError without positions."""
    if not len(hidden):
        raise ValueError("no calibration positions: the second moment of nothing. Give longer text.")
    total = torch.zeros(hidden.shape[1], hidden.shape[1], dtype=torch.float64, device=hidden.device)
    with exact_products(hidden.device.type):
        for block in hidden.split(4096):
            rows = block.double()
            total.addmm_(rows.T, rows)
    return total / len(hidden)


def _check(names: tuple[str, ...], *, random: int, dim: int, slope: Tensor, hidden: Tensor) -> None:
    unknown = [name for name in names if name not in ORDERS]
    if unknown:
        raise ValueError(f"unknown order {unknown[0]!r}; take from {', '.join(ORDERS)}. Random ones have a number.")
    if not names and random < 1:
        raise ValueError("no order is asked for: name one, or have random ones.")
    if slope.shape != (dim,) or hidden.shape[1] != dim:
        raise ValueError(
            f"the slope has shape {tuple(slope.shape)}, hidden states are {hidden.shape[1]} wide; the output embedding "
            f"has {dim} dimensions: they belong to two models."
        )
