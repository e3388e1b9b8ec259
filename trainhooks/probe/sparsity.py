"""Whether few dimensions carry the slope, beside what rotated and randomly ordered dimensions would show."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from trainhooks.probe.solve import solve_sums, usable_columns
from trainhooks.probe.sums import Moments, ProbeSums

SHARE = 0.9
FIRST_LOOK = 32
MOST_ORDERS = 20
RAISES = 16


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
    sparsity: Tensor = (root - s.abs().sum() / torch.linalg.vector_norm(s)) / s.new_tensor(root - 1)
    return sparsity


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
    factor = _factor(gram)
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


def _factor(gram: Tensor) -> Tensor:
    """The Cholesky factor; where rounding has left a Gram matrix that has none, of one with a larger ridge.

    So it is with fewer rows than columns and a long mean row: the ridge is raised tenfold until there is a factor, at
    most to the diagonal's own size. NaN where the matrix is not finite.
    """
    step = gram.diagonal().abs().max() * len(gram) * torch.finfo(gram.dtype).eps
    factor: Tensor
    for _ in range(RAISES):
        factor, info = torch.linalg.cholesky_ex(gram)
        if int(info) == 0:
            return factor
        gram = gram + torch.diag_embed(step.expand(len(gram)))
        step = 10 * step
    return torch.full_like(gram, torch.nan)


def dimensions_needed(curve: Float[Tensor, "dim"], *, share: float = SHARE) -> float:
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


SPARSER = {"gini": 1, "hoyer": 1, "participation_ratio": -1, "unique_participation_ratio": -1, "dimensions": -1}
"""The sign by which each figure says sparser."""
LEAST_ROTATIONS = 99
"""With fewer rotations no p is as small as 0.01."""


@dataclass(frozen=True)
class Sparsity:
    """`as_is` for the embedding's own axes, `rotated` for Haar rotations of them, `random_order` dimensions needed.

    Own axes are privileged only where `as_is` lies outside the rotations; a sparse-looking slope alone says nothing.
    """

    as_is: Concentration
    rotated: tuple[Concentration, ...]
    random_order: tuple[float, ...]

    @property
    def p(self) -> float:
        """The share, in [1/(draws + 1), 1], of own axes and rotations whose sparsest figure is as sparse as the own's.

        One p for all five figures: each is standardised over own axes and rotations together, the largest of the five
        is taken for each of them, and their largest are compared. So own axes without privilege are called sparser
        at 0.05 in 5% of cases, however many figures there are. Figures that are undefined or all equal are left out;
        NaN where none is left. Source: Westfall and Young 1993, "Resampling-based multiple testing", section 2.3.
        """
        largest = [max(row, default=math.nan) for row in zip(*self._standardised(), strict=True)]
        if not largest or not self.rotated:
            return math.nan
        share: float = sum(value >= largest[0] for value in largest) / len(largest)
        return share

    @property
    def most(self) -> str:
        """The figure by which the own axes are sparsest, "" where none is defined."""
        named = dict(zip(self._figures(), self._standardised(), strict=True))
        return max(named, key=lambda name: named[name][0], default="")

    def _figures(self) -> dict[str, list[float]]:
        """Each figure of the own axes and the rotations, larger for sparser, where it is defined and varies."""
        found = {
            name: [sign * getattr(one, name) for one in (self.as_is, *self.rotated)] for name, sign in SPARSER.items()
        }
        return {name: v for name, v in found.items() if all(map(math.isfinite, v)) and max(v) - min(v) > 1e-12}

    def _standardised(self) -> list[list[float]]:
        def scaled(values: list[float]) -> list[float]:
            mean = math.fsum(values) / len(values)
            deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
            return [(value - mean) / deviation for value in values]

        return [scaled(values) for values in self._figures().values()]


@torch.no_grad()
def probe_sparsity(sums: ProbeSums, *, draws: int = LEAST_ROTATIONS, seed: int = 0) -> Sparsity:
    """Sparsity of the slope that the sums hold, with `draws` rotations and up to 20 random orders beside it.

    Offline: a rotation costs some 20 dim^3 operations in float64. Draws come from an own CPU generator with `seed`,
    the same on every device.

    Raises ValueError for sums of several targets.
    """
    _one_target(sums)
    generator = torch.Generator().manual_seed(seed)
    dim, device = sums.gram.shape[1], sums.gram.device
    axes, curve = _Axes(sums), refit_curve(sums)
    rotated = tuple(
        axes.concentration(haar_rotation(dim, generator=generator).to(device), whole=curve[-1]) for _ in range(draws)
    )
    orders = (torch.randperm(dim, generator=generator).to(device) for _ in range(min(draws, MOST_ORDERS)))
    random_order = tuple(dimensions_needed(refit_curve(sums, orders=order.expand(sums.folds, -1))) for order in orders)
    own = replace(axes.concentration(None, whole=curve[-1]), dimensions=dimensions_needed(curve))
    return Sparsity(as_is=own, rotated=rotated, random_order=random_order)


class _Axes:
    """The slope of one set of sums, seen in rotated axes; what does not depend on the rotation is computed once."""

    def __init__(self, sums: ProbeSums) -> None:
        self._sums, self._found = sums, solve_sums(sums, exact=True)
        self._values, self._vectors = torch.linalg.eigh(sums.total().gram)
        self._trained = sums.without_each()

    def concentration(self, rotation: Tensor | None, *, whole: Tensor) -> Concentration:
        """The five figures in the axes E R; `whole` is the held-out R^2 of all dimensions, which no rotation changes.

        Without a rotation, the own axes, the dimensions are left to the caller.
        """
        total, back = self._sums.total(), None if rotation is None else rotation.T
        slope = self._found.slope[:, 0] if back is None else back @ self._found.slope[:, 0]
        vectors = self._vectors if back is None else back @ self._vectors
        unique = slope.square() / _inverse_diagonal(self._values, vectors, eps=self._sums.eps)
        s = slope.abs() * (_diagonal_in(rotation, total.gram) / total.weight).sqrt()
        needed = math.nan if rotation is None else self._dimensions(rotation, least=SHARE * whole)
        return Concentration(
            gini=float(gini(s)),
            hoyer=float(hoyer(s)),
            participation_ratio=float(participation_ratio(s)),
            unique_participation_ratio=float(participation_ratio(unique)),
            dimensions=needed,
        )

    def _dimensions(self, rotation: Tensor, *, least: Tensor) -> float:
        """The fewest rotated dimensions, by falling saliency, whose refit reaches `least`; NaN as `dimensions_needed`.

        Only leading ones are looked at, twice as many as long as they do not reach it.
        """
        if not bool(least > 0):
            return math.nan
        slopes = (rotation.T @ self._found.fold_slope)[:, :, 0].abs()
        spread = (_diagonal_in(rotation, self._trained.gram) / self._trained.weight[:, None]).sqrt()
        orders = (slopes * spread).argsort(dim=1, descending=True, stable=True)
        dim = size = orders.shape[1]
        size = min(dim, FIRST_LOOK)
        while True:
            reached = (self._leading_curve(rotation, orders[:, :size]) >= least).nonzero()
            if len(reached) or size == dim:
                return float(reached[0] + 1) if len(reached) else math.nan
            size = min(dim, 2 * size)

    def _leading_curve(self, rotation: Tensor, orders: Tensor) -> Tensor:
        """The leading part of `refit_curve` in rotated axes: the sums are projected onto the columns a fold takes."""
        error = spread = torch.zeros((), dtype=torch.float64, device=orders.device)
        straight = torch.arange(orders.shape[1], device=orders.device)
        for fold, order in enumerate(orders):
            part = rotate(self._sums, rotation[:, order])
            fold_error, fold_spread = _held_out_errors(part.without(fold), part.fold(fold), straight)
            error, spread = error + fold_error, spread + fold_spread
        least_rows = (self._sums.total().rows - self._sums.rows).min()
        return torch.where(straight + 1 < least_rows, 1 - error / spread, torch.nan)


def _diagonal_in(rotation: Tensor | None, gram: Tensor) -> Tensor:
    """The diagonal of R' G R, clear of rounding below 0; of G without a rotation."""
    if rotation is None:
        return gram.diagonal(dim1=-2, dim2=-1).clamp_min(0)
    return (rotation * (gram @ rotation)).sum(-2).clamp_min(0)


def haar_rotation(dim: int, *, generator: torch.Generator) -> Float64[Tensor, "dim dim"]:
    """A random orthogonal matrix, uniform (Haar): QR of a Gaussian matrix with signs fixed.

    Source: Mezzadri 2007, "How to generate random matrices from the classical compact groups", math-ph/0609050.
    """
    q, r = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64, generator=generator))
    rotation: Tensor = q * r.diagonal().sign()
    return rotation


def rotate(sums: ProbeSums, rotation: Float64[Tensor, "dim columns"]) -> ProbeSums:
    """The sums that the embedding E R would give, without a look at the embedding; R may have fewer columns."""
    return replace(
        sums,
        mean_x=sums.mean_x @ rotation,
        gram=rotation.T @ sums.gram @ rotation,
        moment=rotation.T @ sums.moment,
    )


def _one_target(sums: ProbeSums) -> None:
    if sums.moment.shape[2] != 1:
        raise ValueError(f"sparsity takes sums of one target, got {sums.moment.shape[2]}: build them for one.")
