"""What stands in for deleted dimensions: nothing, their mean over contexts, the kept dimensions, or a rank."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from trainhooks.intervene.deletion.orders import Order, second_moment

VARIANTS = ("zero", "context_mean", "compensated")
RANK = "rank_k"
RIDGE = 1e-6
"""Added to the second moment's diagonal, as a share of its mean: dead dimensions leave it singular."""


@dataclass(frozen=True)
class DeletionVariant:
    """Coordinates of hidden states in which a deletion drops the last ones: logits = base + sum over kept j.

    A state h is written as u = C (h - mean), and the logits as E mean + b + sum_j u_j (E B)_j with B = `basis`
    [dim, dim] (columns j) and C = `coordinates` = B^-1. Keeping the first k coordinates *is* the variant: a permutation
    for `zero`, the same about the context mean for `context_mean` (`mean` [dim], else None); the Cholesky factor of
    M in keeping order for `compensated`, since E[h | kept h], linear and without intercept, is L_k L_kk^-1 h_kept and
    successive ones differ by innovations; the eigenvectors of the squared logit error for `rank_k`. So each variant
    is evaluated by subtracting one block of dimensions after the other.
    """

    variant: str
    order: Order | None
    basis: Float[Tensor, "dim dim"]
    coordinates: Float[Tensor, "dim dim"]
    mean: Float[Tensor, "dim"] | None = None

    @property
    def label(self) -> str:
        """`variant/order`, with the seed of a random order: `zero/random-3`."""
        if self.order is None:
            return self.variant
        seed = "" if self.order.seed is None else f"-{self.order.seed}"
        return f"{self.variant}/{self.order.name}{seed}"


def plain_code(order: Order, *, mean: Float[Tensor, "dim"] | None = None) -> DeletionVariant:
    """`zero`: deleted columns are set to 0 (to their mean over tokens: the same, by the softmax).

    With the `mean` [dim] of calibration's hidden states, `context_mean`: deleted dimensions keep E_wi mean(h_i), a
    bias for each token.
    """
    basis = torch.eye(len(order.dimensions), device=order.dimensions.device)[:, order.dimensions.flip(0)]
    return DeletionVariant("zero" if mean is None else "context_mean", order, basis, basis.T, mean)


def compensated_code(order: Order, moment: Float[Tensor, "dim dim"]) -> DeletionVariant:
    """`compensated`: kept dimensions take over E_del M_del,keep M_keep,keep^-1; M = `moment` from `second_moment`.

    M gets a ridge of 1e-6 of its mean diagonal, so that it is regular. Raises ValueError where M is all 0.
    """
    factor = torch.linalg.cholesky(_with_ridge(moment)[order.dimensions.flip(0)][:, order.dimensions.flip(0)])
    one = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
    inverse = torch.linalg.solve_triangular(factor, one, upper=False)
    basis, coordinates = torch.empty_like(factor), torch.empty_like(factor)
    basis[order.dimensions.flip(0)] = factor
    coordinates[:, order.dimensions.flip(0)] = inverse
    return DeletionVariant("compensated", order, basis.float(), coordinates.float())


def rank_code(weight: Float[Tensor, "vocab dim"], moment: Float[Tensor, "dim dim"]) -> DeletionVariant:
    """`rank_k`, the reference without an order: the matrix of rank k with the least squared logit error.

    Least over the calibration contexts of M = `moment`, after each context's mean logit is taken off, which no
    probability depends on: the leading eigenvectors of M^1/2 E'E M^1/2 with E centred (Eckart and Young 1936).
    No choice of dimensions with compensation can have a smaller logit error on calibration text.
    """
    centred = (weight - weight.mean(0)).double()
    values, vectors = torch.linalg.eigh(_with_ridge(moment))
    root = (vectors * values.sqrt()) @ vectors.T
    inverse = (vectors / values.sqrt()) @ vectors.T
    _, leading = torch.linalg.eigh(root @ (centred.T @ centred) @ root)
    leading = leading.flip(1)
    return DeletionVariant(RANK, None, (root @ leading).float(), (leading.T @ inverse).float())


@torch.no_grad()
def build_codes(
    weight: Float[Tensor, "vocab dim"],
    hidden: Float[Tensor, "position dim"],
    *,
    orders: list[Order],
    variants: tuple[str, ...] = VARIANTS,
    rank: bool = True,
) -> list[DeletionVariant]:
    """Every variant with every order, then the rank-k reference; M and means from calibration's hidden states.

    Raises ValueError for an unknown variant, and without positions.
    """
    unknown = [name for name in variants if name not in VARIANTS]
    if unknown or not variants:
        raise ValueError(f"unknown variant {unknown[:1] or 'none'}; take from {', '.join(VARIANTS)}.")
    moment = second_moment(hidden)
    mean = hidden.mean(0, dtype=torch.float64).float()
    codes: list[DeletionVariant] = []
    for variant in variants:
        for order in orders:
            if variant == "compensated":
                codes.append(compensated_code(order, moment))
            else:
                codes.append(plain_code(order, mean=mean if variant == "context_mean" else None))
    return codes + ([rank_code(weight, moment)] if rank else [])


@torch.no_grad()
def edited_head(
    weight: Float[Tensor, "vocab dim"],
    *,
    code: DeletionVariant,
    deleted: int,
    bias: Float[Tensor, "vocab"] | None = None,
) -> tuple[Float[Tensor, "vocab dim"], Float[Tensor, "vocab"] | None]:
    """The output embedding [vocab, dim] and head bias with the last `deleted` coordinates of a code gone.

    Deleted columns are exactly 0 for all but `rank_k`. The bias is the one given, for `context_mean` with
    E_wi mean(h_i) of the deleted dimensions added (a bias where there was none). Raises ValueError for a number of
    dimensions outside [0, dim].
    """
    dim = weight.shape[1]
    if not 0 <= deleted <= dim:
        raise ValueError(f"cannot delete {deleted} dimensions: the output embedding has {dim}.")
    if not deleted:
        return weight.clone(), bias
    kept = dim - deleted
    keep = code.basis[:, :kept].to(weight.device) @ code.coordinates[:kept].to(weight.device)
    edited = weight @ keep
    if code.order is not None:
        edited[:, code.order.dimensions[:deleted]] = 0
    if code.mean is None:
        return edited, bias
    moved = (weight - edited) @ code.mean.to(weight.device)
    return edited, moved if bias is None else bias + moved


def _with_ridge(moment: Tensor) -> Tensor:
    level = moment.double().diagonal().mean()
    if not bool(level > 0) or not bool(level.isfinite()):
        raise ValueError(
            f"hidden states have mean square {float(level):g} on the calibration text; it must be above 0."
        )
    return moment.double() + RIDGE * level * torch.eye(len(moment), dtype=torch.float64, device=moment.device)
