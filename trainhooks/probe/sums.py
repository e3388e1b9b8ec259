"""The sums of a least-squares probe: small, by fold, and they add over blocks, shards and ranks."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from trainhooks.numerics.rank_correlation import rounding_square


@dataclass(frozen=True)
class Moments:
    """Weight, rows, means and centred second moments of one set of rows, or of a batch of them, float64.

    `weight` is the sum of the weights (the number of rows without weights), `gram` E'E, `moment` E'y and `square`
    y'y about the means. `eps` is the machine precision of the products they were summed from, `noise` what
    rounding alone, or squares below the smallest normal number, can leave on the diagonal of `gram`. An empty set
    has weight 0 and zeros everywhere.
    """

    weight: Float64[Tensor, "*batch"]
    rows: Float64[Tensor, "*batch"]
    mean_x: Float64[Tensor, "*batch dim"]
    mean_y: Float64[Tensor, "*batch target"]
    gram: Float64[Tensor, "*batch dim dim"]
    moment: Float64[Tensor, "*batch dim target"]
    square: Float64[Tensor, "*batch target"]
    noise: Float64[Tensor, "*batch dim"]
    eps: float

    def varies(self) -> Bool[Tensor, "*batch target"]:
        """Targets whose spread is more than the rounding of their mean: only those have an R^2."""
        return self.square > rounding_square(self.mean_y, self.weight[..., None])


@dataclass(frozen=True)
class ProbeSums:
    """`Moments` for each fold, stacked; `a + b` are the sums of both sets of rows (up to rounding).

    Means and moments centred about them are merged by the formulas of Chan, Golub and LeVeque 1983 (The American
    Statistician 37, doi:10.1080/00031305.1983.10483115), so nothing cancels where means are large.
    """

    weight: Float64[Tensor, "fold"]
    rows: Float64[Tensor, "fold"]
    mean_x: Float64[Tensor, "fold dim"]
    mean_y: Float64[Tensor, "fold target"]
    gram: Float64[Tensor, "fold dim dim"]
    moment: Float64[Tensor, "fold dim target"]
    square: Float64[Tensor, "fold target"]
    eps: float = 2.0**-52

    @property
    def folds(self) -> int:
        """The number of folds."""
        return len(self.weight)

    def __add__(self, other: ProbeSums) -> ProbeSums:
        """The sums of both sets of rows. Raises ValueError where folds, dimensions or targets differ."""
        if self.moment.shape != other.moment.shape:
            raise ValueError(
                f"cannot add sums of [fold, dim, target] = {tuple(self.moment.shape)} and "
                f"{tuple(other.moment.shape)}: build both with the same folds, embedding width and targets."
            )
        weight = self.weight + other.weight
        share = other.weight / weight.where(weight > 0, 1)
        step_x, step_y = other.mean_x - self.mean_x, other.mean_y - self.mean_y
        between = self.weight * share
        return ProbeSums(
            weight=weight,
            rows=self.rows + other.rows,
            mean_x=self.mean_x + share[:, None] * step_x,
            mean_y=self.mean_y + share[:, None] * step_y,
            gram=self.gram + other.gram + between[:, None, None] * step_x[:, :, None] * step_x[:, None, :],
            moment=self.moment + other.moment + between[:, None, None] * step_x[:, :, None] * step_y[:, None, :],
            square=self.square + other.square + between[:, None] * step_y.square(),
            eps=max(self.eps, other.eps),
        )

    def to(self, device: torch.device | str) -> ProbeSums:
        """The same sums on another device, as a merge over ranks needs them."""
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "eps"}
        return ProbeSums(**moved, eps=self.eps)

    def fold(self, fold: int) -> Moments:
        """The moments of one fold's rows: what is held out."""
        parts = {f.name: getattr(self, f.name)[fold] for f in fields(self) if f.name != "eps"}
        noise = _noise(parts["mean_x"], parts["weight"], eps=self.eps)
        return Moments(**parts, noise=noise, eps=self.eps)

    def total(self) -> Moments:
        """The moments of all rows together, kept once computed."""
        return self._total

    @cached_property
    def _total(self) -> Moments:
        weight = self.weight.sum()
        share = self.weight / weight.where(weight > 0, 1)
        mean_x, mean_y = share @ self.mean_x, share @ self.mean_y
        x, y = self.mean_x - mean_x, self.mean_y - mean_y
        weighted = self.weight[:, None] * x
        return Moments(
            weight=weight,
            rows=self.rows.sum(),
            mean_x=mean_x,
            mean_y=mean_y,
            gram=self.gram.sum(0).addmm_(weighted.T, x),
            moment=self.moment.sum(0) + weighted.T @ y,
            square=self.square.sum(0) + (self.weight[:, None] * y.square()).sum(0),
            noise=_noise(mean_x, weight, eps=self.eps),
            eps=self.eps,
        )

    def without(self, fold: int) -> Moments:
        """The moments of all rows but one fold's, what its prediction is trained on, by taking it off the total."""
        whole, part = self.total(), self.fold(fold)
        weight = whole.weight - part.weight
        weight = weight * (self.rows.sum() > part.rows)  # nothing left: exactly 0, whatever the weights round to
        safe = weight.where(weight > 0, 1)
        x, y = part.mean_x - whole.mean_x, part.mean_y - whole.mean_y
        between = whole.weight * part.weight / safe
        gram = (whole.gram - part.gram).addr_(between * x, x, alpha=-1)
        return Moments(
            weight=weight,
            rows=whole.rows - part.rows,
            mean_x=whole.mean_x - part.weight / safe * x,
            mean_y=whole.mean_y - part.weight / safe * y,
            gram=gram,
            moment=whole.moment - part.moment - between * x[:, None] * y,
            square=whole.square - part.square - between * y.square(),
            # a column that only the fold has varied leaves the difference of two equal numbers
            noise=whole.noise.maximum(64 * self.eps * whole.gram.diagonal()),
            eps=self.eps,
        )

    def without_each(self, *, out: Float64[Tensor, "fold dim dim"] | None = None) -> Moments:
        """`without` of every fold at once, a batch [fold]: few large operations where a loop makes many small ones.

        The Gram matrices are written into `out` where it is given.
        """
        whole = self.total()
        weight = (whole.weight - self.weight) * (self.rows.sum() > self.rows)
        x, y = self.mean_x - whole.mean_x, self.mean_y - whole.mean_y
        share = (self.weight / weight.where(weight > 0, 1))[:, None]
        between = whole.weight * share
        scaled = (between * x)[:, :, None]
        return Moments(
            weight=weight,
            rows=whole.rows - self.rows,
            mean_x=whole.mean_x - share * x,
            mean_y=whole.mean_y - share * y,
            gram=torch.sub(whole.gram, self.gram, out=out).baddbmm_(scaled, x[:, None, :], alpha=-1),
            moment=whole.moment - self.moment - scaled * y[:, None, :],
            square=whole.square - self.square - between * y.square(),
            noise=whole.noise.maximum(64 * self.eps * whole.gram.diagonal()).expand_as(x),
            eps=self.eps,
        )

    def total_and_without_each(self) -> Moments:
        """`total`, then `without_each`: one batch [1 + fold]."""
        whole = self.total()
        gram = torch.empty(1 + self.folds, *whole.gram.shape, dtype=whole.gram.dtype, device=whole.gram.device)
        gram[0] = whole.gram
        each = self.without_each(out=gram[1:])
        names = [f.name for f in fields(Moments) if f.name not in ("eps", "gram")]
        joined = {n: torch.cat([getattr(whole, n)[None], getattr(each, n)]) for n in names}
        return Moments(**joined, gram=gram, eps=self.eps)


def _noise(mean: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    # squares below the smallest normal number have lost their digits: a spread of 1e-19 in float32
    double = torch.finfo(torch.float64)
    smallest = double.tiny if eps <= double.eps else torch.finfo(torch.float32).tiny
    return rounding_square(mean, weight, eps=eps).maximum(weight * smallest)


def centred_sums(
    *,
    products_xx: Float[Tensor, "fold dim dim"],
    products_xz: Float[Tensor, "fold dim columns"],
    products_zz: Float[Tensor, "fold columns columns"],
    rows: Float[Tensor, "fold"],
    shift_x: Float[Tensor, "dim"],
    shift_y: Float[Tensor, "target"],
    eps: float,
) -> ProbeSums:
    """Sums about the means from plain products of shifted rows X and Z = [1, shifted y]; overwrites `products_xx`."""
    weight = products_zz[:, 0, 0]
    safe = weight.where(weight > 0, 1)[:, None]
    x, y = products_xz[:, :, 0] / safe, products_zz[:, 0, 1:] / safe
    scaled = weight[:, None, None] * x[:, :, None]
    empty = (weight == 0)[:, None]
    return ProbeSums(
        weight=weight,
        rows=rows,
        mean_x=(x + shift_x).masked_fill(empty, 0),
        mean_y=(y + shift_y).masked_fill(empty, 0),
        gram=products_xx.baddbmm_(scaled, x[:, None, :], alpha=-1),
        moment=products_xz[:, :, 1:] - scaled * y[:, None, :],
        square=products_zz.diagonal(dim1=1, dim2=2)[:, 1:] - weight[:, None] * y.square(),
        eps=eps,
    )
