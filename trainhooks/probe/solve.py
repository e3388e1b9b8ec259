"""Least squares from the moments of a probe: slope, intercept and rank, for all rows and for all folds but one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from trainhooks.probe.sums import Moments, ProbeSums


@dataclass(frozen=True)
class Coefficients:
    """Slopes and intercepts of all rows, and of all rows but each fold; `rank` k of the centred rows.

    `trained_mean` is the mean target of the rows that a fold's slope was fitted on, `trained_varies` whether it is more
    than a constant there: else the slope is rounding. `pivot`, in (0, 1], is the
    smallest share of a column's variance that the columns before it left unexplained; small means ill-conditioned
    (1 from the exact solution, which needs no such sign).
    """

    slope: Float64[Tensor, "dim target"]
    intercept: Float64[Tensor, "target"]
    fold_slope: Float64[Tensor, "fold dim target"]
    fold_intercept: Float64[Tensor, "fold target"]
    trained_mean: Float64[Tensor, "fold target"]
    trained_varies: Bool[Tensor, "fold target"]
    rank: Float64[Tensor, ""]
    pivot: Float64[Tensor, ""]


class Slope(NamedTuple):
    """A slope, the rank of its rows (0 where not asked for), and the smallest squared pivot (1 without pivots)."""

    slope: Float64[Tensor, "*batch dim target"]
    rank: Float64[Tensor, "*batch"]
    pivot: Float64[Tensor, "*batch"]


def solve_sums(sums: ProbeSums, *, exact: bool, with_rank: bool = True) -> Coefficients:
    """The least-squares coefficients that the sums hold, solved in float64.

    `exact` takes the least-norm solution by an eigendecomposition, right for any rank; else a Cholesky
    factorisation, six times as fast and free of a device wait, right where the columns are independent within
    the tolerance of `cholesky_slope`. Where no rows are left to train on, intercepts are NaN. The rank is that of
    `cholesky_slope`'s `with_rank`.
    """
    slope_of = least_norm_slope if exact else cholesky_slope
    moments = sums.total_and_without_each()
    found = slope_of(moments, with_rank=with_rank)
    intercept = _intercept(moments, found.slope)
    # a target that only the fold has varied leaves the difference of two equal sums
    varies = moments.varies() & (moments.square > 64 * sums.eps * moments.square[0])
    return Coefficients(
        slope=found.slope[0],
        intercept=intercept[0],
        fold_slope=found.slope[1:],
        fold_intercept=intercept[1:],
        trained_mean=moments.mean_y[1:],
        trained_varies=varies[1:],
        rank=found.rank[0],
        pivot=found.pivot.min(),
    )


def _intercept(moments: Moments, slope: Tensor) -> Tensor:
    intercept = moments.mean_y - (moments.mean_x[..., None, :] @ slope)[..., 0, :]
    return intercept.masked_fill(moments.rows[..., None] <= 0, torch.nan)


def usable_columns(moments: Moments) -> Bool[Tensor, "*batch dim"]:
    """Columns that vary by more than rounding."""
    return _diagonal(moments.gram) > moments.noise


def _diagonal(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1)


def least_norm_slope(moments: Moments, *, with_rank: bool = True) -> Slope:
    """The least-squares slope of least norm, and the rank of the centred rows.

    Eigenvalues of E'E count where they exceed dim x eps x the largest, the backward error of a symmetric
    eigensolver; so singular values of E count down to sqrt(dim x eps) of the largest, 4e-7 at 768 in float64.
    `with_rank` is there for `cholesky_slope`: here the rank comes for nothing.
    """
    usable = usable_columns(moments)
    gram = moments.gram * (usable[..., :, None] & usable[..., None, :])
    values, vectors = torch.linalg.eigh(gram)
    keep = values > values.shape[-1] * moments.eps * values[..., -1:].clamp_min(0)
    inverse = torch.where(keep, 1 / values.where(keep, 1), 0)
    slope = vectors @ (inverse[..., None] * (vectors.mT @ moments.moment))
    return Slope(slope=slope * usable[..., None], rank=keep.sum(-1).double(), pivot=torch.ones_like(moments.rows))


def cholesky_slope(moments: Moments, *, with_rank: bool = True) -> Slope:
    """The least-squares slope by a Cholesky factorisation of the correlation matrix, and its rank.

    A ridge tau (`tolerance`), above the rounding noise in the matrix's spectrum, keeps the factorisation alive;
    two refinement steps then take it out, up to (tau / (lambda + tau))^3 for an eigenvalue lambda: 1e-6 relative
    at lambda = 100 tau. The rank counts eigenvalues above tau (0 where `with_rank` is false; of a batch the first has
    one). NaN where the matrix holds NaN.
    """
    usable = usable_columns(moments)
    scale = _diagonal(moments.gram).rsqrt().masked_fill_(~usable, 0)[..., None]
    correlation = (moments.gram * scale).mul_(scale.mT)
    tau = tolerance(moments)
    _diagonal(correlation).copy_(1 + tau * usable.double())
    factor, info = torch.linalg.cholesky_ex(correlation)
    target = moments.moment * scale
    slope = torch.cholesky_solve(target, factor)
    for _ in range(2):
        left = (target - correlation @ slope).add_(slope, alpha=tau)
        slope = slope + torch.cholesky_solve(left, factor)
    rank = torch.zeros_like(moments.rows)
    if with_rank:
        one = factor.flatten(0, -3)[0] if factor.ndim > 2 else factor
        rank.view(-1)[0] = _rank(torch.cholesky_inverse(one), tau=tau, usable=usable.view(-1, usable.shape[-1])[0])
    failed = info != 0
    slope = (slope * scale).masked_fill_(failed[..., None, None], torch.nan)
    return Slope(slope=slope, rank=rank.masked_fill_(failed, torch.nan), pivot=_diagonal(factor).amin(-1).square())


def _rank(inverse: Tensor, *, tau: float, usable: Tensor) -> Tensor:
    """How many eigenvalues lie above tau, from the inverse of the ridged matrix: no eigenvalues, no device wait.

    With f = lambda / (lambda + tau), sums the smooth step 10 f^3 - 15 f^4 + 6 f^5, which is flat at 0 and at 1, so
    that neither rounding noise around 0 nor small eigenvalues add up to a whole one. Exact up to rounding unless
    eigenvalues lie near tau; constant columns, whose 1 stands in the matrix for nothing, do not count.
    """
    g = (tau * inverse).float()  # its eigenvalues are 1 - f, in [0, 1] but for noise: float32 will do
    square = g @ g
    step = torch.addmm(g, square, g, beta=10, alpha=6).sub_(square, alpha=15)
    return (usable.sum() - (step.mul_(square)).sum().double()).round()


def tolerance(moments: Moments) -> float:
    """8 sqrt(dim) eps + 8 dim 2^-52: ten times what rounding puts into the eigenvalues of a correlation matrix.

    The first term is for the products: float32 blocks of exactly collinear columns left 0.03 to 0.6 sqrt(dim) eps
    at dim 82 to 768, the most where one direction dominates. The second is for the factorisation in float64.
    """
    dim = moments.gram.shape[-1]
    bound: float = 8 * dim**0.5 * moments.eps + 8 * dim * 2.0**-52
    return bound


def smallest_eigenvalue(moments: Moments) -> float:
    """The smallest eigenvalue of the correlation matrix, in [0, 1]; 0 with constant columns. Waits for the device."""
    usable = usable_columns(moments)
    if not bool(usable.all()):
        return 0.0
    scale = moments.gram.diagonal().rsqrt()
    return max(0.0, float(torch.linalg.eigvalsh(moments.gram * scale[:, None] * scale)[0]))
