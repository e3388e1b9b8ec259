"""Least squares from the moments of a probe: slope, intercept and rank, for all rows and for all folds but one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from trainhooks.numerics.rank_correlation import rounding_square
from trainhooks.probe.rows import HOSTS
from trainhooks.probe.sums import Moments, ProbeSums

NEARLY_NONE = 0.3
"""The sum of all 1 - f in a rank from which on they might add up to half an eigenvalue."""


@dataclass(frozen=True)
class Coefficients:
    """Slopes and intercepts of all rows, and of all rows but each fold; `rank` k of the centred rows.

    `trained_mean` is the mean target of the rows that a fold's slope was fitted on, and `trained_square` its squares
    about it, `square` those of all rows; `eps` is the precision of the sums. `pivot`, in (0, 1], is the smallest share
    of a column's variance that the columns before it left unexplained; small means ill-conditioned (1 from the exact
    solution, which needs no such sign).
    """

    slope: Float64[Tensor, "dim target"]
    intercept: Float64[Tensor, "target"]
    fold_slope: Float64[Tensor, "fold dim target"]
    fold_intercept: Float64[Tensor, "fold target"]
    trained_mean: Float64[Tensor, "fold target"]
    trained_square: Float64[Tensor, "fold target"]
    trained_weight: Float64[Tensor, "fold 1"]
    square: Float64[Tensor, "target"]
    rank: Float64[Tensor, ""]
    pivot: Float64[Tensor, ""]
    eps: float

    @property
    def trained_varies(self) -> Bool[Tensor, "fold target"]:
        """Whether a target is more than a constant where a fold's slope was fitted: else the slope is rounding."""
        noise = rounding_square(self.trained_mean, self.trained_weight)
        # a target that only the fold has varied leaves the difference of two equal sums
        return self.trained_square > noise.maximum(64 * self.eps * self.square)


class Factor(NamedTuple):
    """L and s of moments, or a batch of them: L L' is diag(s) E'E diag(s) with a ridge, 1 on its diagonal."""

    lower: Float[Tensor, "*batch dim dim"]
    scale: Float64[Tensor, "*batch dim 1"]


class Slope(NamedTuple):
    """A slope, or a batch of them, the rank of the first one's rows (0 where not asked for), and the smallest squared
    pivot of all (1 without pivots); and the factor that they were solved with, if one was.
    """

    slope: Float64[Tensor, "*batch dim target"]
    rank: Float64[Tensor, ""]
    pivot: Float64[Tensor, ""]
    factor: Factor | None = None


def solve_sums(sums: ProbeSums, *, exact: bool, with_rank: bool = True) -> Coefficients:
    """The least-squares coefficients that the sums hold, solved in float64.

    `exact` takes the least-norm solution by an eigendecomposition, right for any rank; else a Cholesky
    factorisation, six times as fast and free of a device wait, right where the columns are independent within
    the tolerance of `cholesky_slope`. Where no rows are left to train on, intercepts are NaN. The rank is that of
    `cholesky_slope`'s `with_rank`.
    """
    return solve_moments(sums.total_and_without_each(), exact=exact, with_rank=with_rank)


def solve_moments(moments: Moments, *, exact: bool, with_rank: bool = True) -> Coefficients:
    """`solve_sums` of moments of all rows and of all but each fold's, a batch [1 + fold]."""
    return solve_with_factor(moments, exact=exact, with_rank=with_rank)[0]


def solve_with_factor(moments: Moments, *, exact: bool, with_rank: bool = True) -> tuple[Coefficients, Factor | None]:
    """`solve_moments`, and the factor that it was solved with: None where `exact`."""
    slope_of = least_norm_slope if exact else cholesky_slope
    found = slope_of(moments, with_rank=with_rank)
    intercept = _intercept(moments, found.slope)
    coefficients = Coefficients(
        slope=found.slope[0],
        intercept=intercept[0],
        fold_slope=found.slope[1:],
        fold_intercept=intercept[1:],
        trained_mean=moments.mean_y[1:],
        trained_square=moments.square[1:],
        trained_weight=moments.weight[1:, None],
        square=moments.square[0],
        rank=found.rank,
        pivot=found.pivot,
        eps=moments.eps,
    )
    return coefficients, found.factor


def _intercept(moments: Moments, slope: Tensor) -> Tensor:
    intercept = torch.baddbmm(moments.mean_y[:, None], moments.mean_x[:, None], slope, alpha=-1)[:, 0]
    return intercept.masked_fill_(moments.rows[:, None] <= 0, torch.nan)


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
    rank = keep.sum(-1).flatten()[0].double()
    return Slope(slope=slope * usable[..., None], rank=rank, pivot=torch.ones_like(rank))


def cholesky_slope(moments: Moments, *, with_rank: bool = True) -> Slope:
    """The least-squares slope by a Cholesky factorisation of the correlation matrix, and its rank.

    A ridge tau (`tolerance`), above the rounding noise in the matrix's spectrum, keeps the factorisation alive; two
    refinement steps then take it out, up to (tau / (lambda + tau))^3 for an eigenvalue lambda: 1e-6 relative at
    lambda = 100 tau. The rank counts eigenvalues above tau (0 where `with_rank` is false; of a batch, those of the
    first). NaN where the matrix holds NaN.
    """
    constant = usable_columns(moments).logical_not_()
    correlation, scale, tau = _ridged_correlation(moments, constant)
    factor, info = torch.linalg.cholesky_ex(correlation)
    _diagonal(correlation).fill_(1)
    target = moments.moment * scale
    slope = solve_factored(factor, target)
    for _ in range(2):
        slope = slope.add_(solve_factored(factor, _less_product(target, correlation, slope)))
    failed = info != 0
    slope = slope.mul_(scale).masked_fill_(failed[..., None, None], torch.nan)
    pivot = _diagonal(factor).min().square_()
    if not with_rank:
        return Slope(slope, torch.zeros_like(pivot), pivot, Factor(factor, scale))
    one, still = (m.flatten(0, -n - 1)[0] if m.ndim > n else m for m, n in ((factor, 2), (constant, 1)))
    rank = _rank(torch.cholesky_inverse(one), tau=tau, constant=still)
    return Slope(slope, rank.masked_fill_(failed.flatten()[0], torch.nan), pivot, Factor(factor, scale))


def factorise(moments: Moments) -> Factor:
    """The factor of `cholesky_slope`; what of its lower triangle is not a number, or no pivot, says that it failed."""
    correlation, scale, _ = _ridged_correlation(moments, usable_columns(moments).logical_not_())
    lower, info = torch.linalg.cholesky_ex(correlation)
    return Factor(lower.masked_fill_((info != 0)[..., None, None], torch.nan), scale)


def _ridged_correlation(moments: Moments, constant: Tensor) -> tuple[Tensor, Tensor, float]:
    """diag(s) E'E diag(s) with 1 + tau on its diagonal, s [*batch, dim, 1], 0 for a constant column, and tau."""
    scale = _diagonal(moments.gram).masked_fill(constant, torch.inf).rsqrt_()[..., None]
    correlation = (moments.gram * scale).mul_(scale.mT)
    tau = tolerance(moments)
    _diagonal(correlation).fill_(1 + tau)
    return correlation, scale, tau


def solve_factored(lower: Float[Tensor, "*batch dim dim"], right: Float[Tensor, "*batch dim column"]) -> Tensor:
    """The solution of L L' x = right; one operation on a device, and on the host two that do not copy L."""
    if lower.device.type not in HOSTS:
        return torch.cholesky_solve(right, lower)
    half: Tensor = torch.linalg.solve_triangular(lower, right, upper=False)
    whole: Tensor = torch.linalg.solve_triangular(lower.mT, half, upper=True)
    return whole


def _less_product(target: Tensor, matrix: Tensor, x: Tensor) -> Tensor:
    """target - matrix x, of one matrix or a batch."""
    return torch.baddbmm(target, matrix, x, alpha=-1) if matrix.ndim > 2 else torch.addmm(target, matrix, x, alpha=-1)


def _rank(inverse: Tensor, *, tau: float, constant: Tensor) -> Tensor:
    """How many eigenvalues lie above tau, from the inverse of the ridged matrix: no eigenvalues, no device wait.

    With f = lambda / (lambda + tau), sums the smooth step 10 f^3 - 15 f^4 + 6 f^5, which is flat at 0 and at 1, so
    that neither rounding noise around 0 nor small eigenvalues add up to a whole one. Exact up to rounding unless
    eigenvalues lie near tau; constant columns, whose 1 stands in the matrix for nothing, do not count.
    """
    # the steps add up to 10 times the cube of the sum of all 1 - f at most
    if inverse.device.type in HOSTS and float(_diagonal(inverse).sum().numpy()) * tau < NEARLY_NONE:
        return len(inverse) - constant.sum().double()
    g = inverse.mul_(tau).float()  # its eigenvalues are 1 - f, in [0, 1] but for noise: float32 will do
    square = g @ g
    step = torch.addmm(g, square, g, beta=10, alpha=6).sub_(square, alpha=15)
    missing = torch.dot(step.flatten(), square.flatten()) + constant.sum()
    return (len(g) - missing.double()).round()


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
