"""Whether few dimensions carry the slope, beside what rotated and randomly ordered dimensions would show."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from trainhooks.probe.solve import solve_sums, usable_columns
from trainhooks.probe.sums import Moments, ProbeSums


def saliency(total: Moments, slope: Float[Tensor, "dim"]) -> Float64[Tensor, "dim"]:
    """s_i = |A_i| std(E_i) >= 0 [dim], in the target's unit: how far a dimension alone moves the prediction.

    Free of a dimension's scale. Collinear dimensions can all be salient and cancel: see `unique_saliency`.
    """
    return slope.double().abs() * (total.gram.diagonal().clamp_min(0) / total.weight).sqrt()


def unique_saliency(total: Moments, slope: Float[Tensor, "dim"]) -> Float64[Tensor, "dim"]:
    """A_i^2 / [(E'E)^-1]_ii >= 0 [dim], in the target's unit squared times rows.

    The explained sum of squares that is lost when dimension i is removed and the others refitted; dimensions that
    are collinear with others have 0, up to rounding. A constant dimension has 0.
    """
    values, vectors = torch.linalg.eigh(total.gram)
    return slope.double().square() / _inverse_diagonal(values, vectors, eps=total.eps)


def _inverse_diagonal(values: Tensor, vectors: Tensor, *, eps: float) -> Tensor:
    """The diagonal of a Gram matrix's inverse from its eigenvalues, with a floor that makes null directions huge."""
    floor = len(values) * eps * values[-1].clamp_min(0)
    return (vectors.square() / values.maximum(floor).where(values[-1] > 0, 1)).sum(1)


def gini(s: Float[Tensor, "dim"]) -> Float64[Tensor, ""]:
    """Gini index of non-negative values: 0 for all equal, 1 - 1/dim for one alone; NaN for all zero.

    Source: Hurley and Rickard 2009, "Comparing measures of sparsity" (arXiv 0811.4706), table I.
    """
    ordered = s.double().sort().values
    dim = len(ordered)
    ranks = torch.arange(1, dim + 1, dtype=torch.float64, device=s.device)
    return ((2 * ranks - dim - 1) * ordered).sum() / (dim * ordered.sum())


def hoyer(s: Float[Tensor, "dim"]) -> Float64[Tensor, ""]:
    """(sqrt(dim) - |s|_1 / |s|_2) / (sqrt(dim) - 1): 0 for all equal, 1 for one alone; NaN for all zero or dim 1.

    Source: Hoyer 2004, "Non-negative matrix factorization with sparseness constraints", JMLR 5, section 3.1.
    """
    s, root = s.double(), len(s) ** 0.5
    return (root - s.abs().sum() / torch.linalg.vector_norm(s)) / s.new_tensor(root - 1)


def participation_ratio(s: Float[Tensor, "dim"]) -> Float64[Tensor, ""]:
    """(sum s^2)^2 / sum s^4: how many dimensions share the energy, in [1, dim]; NaN for all zero."""
    square = s.double().square()
    return square.sum().square() / square.square().sum()


def refit_curve(sums: ProbeSums, *, orders: Int64[Tensor, "fold dim"] | None = None) -> Float64[Tensor, "dim"]:
    """Held-out R^2 (at most 1) of probes refitted on the first m dimensions, m = 1 ... dim.

    Dimensions are taken in `orders`, one order a fold, by default by falling saliency of the slope fitted without
    the fold; so no held-out row had a say. All m at once: the leading block of a Cholesky factor is the factor of
    the leading block. Dimensions that are collinear with earlier ones add nothing (a ridge of dim x eps of the
    correlation matrix keeps the factorisation alive). NaN for a constant target, and for m that reaches the number
    of rows that some fold trains on: such a refit is not unique.

    Cost: 5 folds x 3 dim^3 operations in float64, 0.2 s at 768 on two cores. Raises ValueError for several targets.
    """
    _one_target(sums)
    if orders is None:
        orders = _orders(sums, solve_sums(sums, exact=True).fold_slope)
    total = sums.total()
    error = torch.zeros(len(total.gram), dtype=torch.float64, device=total.gram.device)
    spread = torch.zeros_like(total.weight)
    for fold in range(sums.folds):
        fold_error, fold_spread = _held_out_errors(sums.without(fold), sums.fold(fold), orders[fold])
        error += fold_error
        spread += fold_spread
    least = (total.rows - sums.rows).min()
    unique = torch.arange(1, len(error) + 1, device=error.device) < least
    return (1 - error / spread).where(total.varies() & unique, torch.nan)


def _orders(sums: ProbeSums, fold_slope: Tensor) -> Tensor:
    """Dimensions by falling saliency in the rows that each fold's slope was fitted on."""
    each = [saliency(sums.without(fold), fold_slope[fold, :, 0]) for fold in range(sums.folds)]
    return torch.stack(each).argsort(dim=1, descending=True, stable=True)


def _held_out_errors(trained: Moments, held_out: Moments, order: Tensor) -> tuple[Tensor, Tensor]:
    """Squared error of each refit, and of the training mean, summed over the held-out rows.

    With L L' the trained Gram in this order, the refit on m dimensions is L_m^-T z_m, so its error is the leading
    m x m part of y'y - 2 z'u + z'Wz with u = L^-1 moment, W = L^-1 gram L^-T of the held-out rows.
    """
    usable = usable_columns(trained)
    gram = (trained.gram * (usable[:, None] & usable))[order][:, order]
    # the trained Gram is a difference of two: where few rows are left, its rounding is that of the larger ones
    ridge = (len(gram) * trained.eps * trained.gram.diagonal()).maximum(trained.noise)
    gram.diagonal().add_(ridge.where(usable, 1)[order])
    factor = torch.linalg.cholesky(gram)
    x, y = held_out.mean_x - trained.mean_x, held_out.mean_y - trained.mean_y
    square = held_out.square[0] + held_out.weight * y[0].square()
    moment = held_out.moment[:, 0] + held_out.weight * x * y[0]
    z, u = torch.linalg.solve_triangular(
        factor, torch.stack([(trained.moment[:, 0] * usable)[order], moment[order]], 1), upper=False
    ).T
    spread = torch.addr(held_out.gram, held_out.weight * x, x)[order][:, order]
    half = torch.linalg.solve_triangular(factor, spread, upper=False)
    w = torch.linalg.solve_triangular(factor, half.T, upper=False)
    quadratic = z * (2 * (w.tril(-1) @ z) + w.diagonal() * z)
    return square + (quadratic - 2 * z * u).cumsum(0), square


def dimensions_needed(curve: Float[Tensor, "dim"], *, share: float = 0.9) -> float:
    """The fewest dimensions whose refit reaches `share` of the R^2 of all, in [1, dim].

    NaN where all dimensions together do no better than the mean (held-out R^2 <= 0), or the curve does not reach
    them (too few rows).
    """
    if not bool(curve[-1] > 0):
        return float("nan")
    return float((curve >= share * curve[-1]).nonzero()[0] + 1)


@dataclass(frozen=True)
class Concentration:
    """How few dimensions carry a slope: Gini, Hoyer and participation ratio of saliency, dimensions for 90% of R^2."""

    gini: float
    hoyer: float
    participation_ratio: float
    unique_participation_ratio: float
    dimensions: float


@dataclass(frozen=True)
class Sparsity:
    """`as_is` for the embedding's own axes, `rotated` for Haar rotations of them, `random_order` dimensions needed.

    Own axes are privileged only where `as_is` lies outside the rotations; a sparse-looking slope alone says nothing.
    """

    as_is: Concentration
    rotated: tuple[Concentration, ...]
    random_order: tuple[float, ...]


@torch.no_grad()
def probe_sparsity(sums: ProbeSums, *, draws: int = 20, seed: int = 0) -> Sparsity:
    """Sparsity of the slope that the sums hold, with `draws` rotations and as many random orders beside it.

    Offline: each rotation costs two dim x dim products a fold and a `refit_curve`, so 20 draws take some 20 s at
    dim 768 and 1 s at 256 on two cores. Draws come from an own CPU generator with `seed`, the same on every device.

    Raises ValueError for sums of several targets.
    """
    _one_target(sums)
    generator = torch.Generator().manual_seed(seed)
    dim, device = sums.gram.shape[1], sums.gram.device
    found = solve_sums(sums, exact=True)
    values, vectors = torch.linalg.eigh(sums.total().gram)
    rotated, random_order = [], []
    for _ in range(draws):
        back = haar_rotation(dim, generator=generator).to(device).T
        rotated.append(
            _concentration(
                rotate(sums, back.T),
                slope=back @ found.slope,
                fold_slope=back @ found.fold_slope,
                inverse=_inverse_diagonal(values, back @ vectors, eps=sums.eps),
            )
        )
        order = torch.randperm(dim, generator=generator).to(device)
        random_order.append(dimensions_needed(refit_curve(sums, orders=order.expand(sums.folds, -1))))
    as_is = _concentration(
        sums,
        slope=found.slope,
        fold_slope=found.fold_slope,
        inverse=_inverse_diagonal(values, vectors, eps=sums.eps),
    )
    return Sparsity(as_is=as_is, rotated=tuple(rotated), random_order=tuple(random_order))


def haar_rotation(dim: int, *, generator: torch.Generator) -> Float64[Tensor, "dim dim"]:
    """A random orthogonal matrix, uniform (Haar): QR of a Gaussian matrix with signs fixed.

    Source: Mezzadri 2007, "How to generate random matrices from the classical compact groups", math-ph/0609050.
    """
    q, r = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64, generator=generator))
    return q * r.diagonal().sign()


def rotate(sums: ProbeSums, rotation: Float64[Tensor, "dim dim"]) -> ProbeSums:
    """The sums that the embedding E R would give, without a look at the embedding."""
    return replace(
        sums,
        mean_x=sums.mean_x @ rotation,
        gram=rotation.T @ sums.gram @ rotation,
        moment=rotation.T @ sums.moment,
    )


def _concentration(sums: ProbeSums, *, slope: Tensor, fold_slope: Tensor, inverse: Tensor) -> Concentration:
    s = saliency(sums.total(), slope[:, 0])
    unique = slope[:, 0].abs() / inverse.sqrt()
    return Concentration(
        gini=float(gini(s)),
        hoyer=float(hoyer(s)),
        participation_ratio=float(participation_ratio(s)),
        unique_participation_ratio=float(participation_ratio(unique)),
        dimensions=dimensions_needed(refit_curve(sums, orders=_orders(sums, fold_slope))),
    )


def _one_target(sums: ProbeSums) -> None:
    if sums.moment.shape[2] != 1:
        raise ValueError(f"sparsity takes sums of one target, got {sums.moment.shape[2]}: build them for one.")
