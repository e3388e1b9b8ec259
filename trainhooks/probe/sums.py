"""The sums of a least-squares probe: small, by fold, and they add over blocks, shards and ranks."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache

import torch
from jaxtyping import Bool, Float64
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

    def at(self, index: int | slice) -> Moments:
        """One, or some, of a batch."""
        return replace(self, **{f.name: getattr(self, f.name)[index] for f in fields(self) if f.name != "eps"})

    def varies(self) -> Bool[Tensor, "*batch target"]:
        """Targets whose spread is more than the rounding of their mean: only those have an R^2."""
        return self.square > self.square_noise()

    def square_noise(self) -> Float64[Tensor, "*batch target"]:
        """What rounding the mean alone can leave of `square`."""
        return rounding_square(self.mean_y, self.weight[..., None])


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
    share = (8 * eps) ** 2  # as in `rounding_square`
    return mean.square().clamp_min_(smallest / share).mul_((weight * share)[..., None])


@dataclass(frozen=True)
class Products:
    """Plain products of shifted rows X and Z = [1, shifted y], by fold: `xx` = X'X, `z` = Z'[X, Z]; they add.

    Of weighted rows both are times the root of the weight; `rows` counts them (None: their weight does). Any `shift` of
    [X, Z] is exact in the end; one near the means keeps the sums free of cancellation. `eps` is the precision that they
    were multiplied in.
    """

    xx: Float64[Tensor, "fold dim dim"]
    z: Float64[Tensor, "fold columns wide"]
    rows: Float64[Tensor, "fold"] | None
    shift: Float64[Tensor, "wide"]
    eps: float

    def sums(self) -> ProbeSums:
        """The sums about each fold's own means."""
        parts = self._centred(self.z, self.xx.clone(), rows=self.rows)
        return ProbeSums(**parts, eps=self.eps)

    def total_and_without_each(self) -> Moments:
        """The moments of all rows, then of all but each fold's: one batch [1 + fold], each added up of the others."""
        return self.of_members(members_without_each(len(self.xx), self.xx.device))

    def of_members(self, within: Float64[Tensor, "set fold"]) -> Moments:
        """The moments of sets of folds, 1 where a fold belongs to a set; the first is the largest."""
        z = (within @ self.z.flatten(1)).view(-1, *self.z.shape[1:])
        xx = (within @ self.xx.flatten(1)).view(-1, *self.xx.shape[1:])
        parts = self._centred(z, xx, rows=None if self.rows is None else within @ self.rows)
        return Moments(**parts, noise=self._noise(parts), eps=self.eps)

    def _noise(self, parts: dict[str, Tensor]) -> Tensor:
        """A column that only one fold has varied leaves rounding of the whole in the sum of the others."""
        whole = _noise(parts["mean_x"][0], parts["weight"][0], eps=self.eps)
        diagonal = parts["gram"][0].diagonal() * (64 * self.eps)
        return torch.cat([whole[None], whole.maximum(diagonal).expand(len(parts["weight"]) - 1, -1)])

    def _centred(self, z: Tensor, xx: Tensor, *, rows: Tensor | None) -> dict[str, Tensor]:
        """Means, and second moments about them; an empty set has zeros everywhere. Overwrites `xx`."""
        dim = xx.shape[-1]
        weight = z[:, 0, dim]
        mean = z[:, 0] / weight.clamp_min(torch.finfo(torch.float64).tiny)[:, None]
        joint = torch.baddbmm(z[:, 1:], z[:, 1:, dim : dim + 1], mean[:, None], alpha=-1)
        gram = xx.baddbmm_(z[:, 0, :dim, None], mean[:, None, :dim], alpha=-1)
        mean = torch.addcmul(mean, weight.sign()[:, None], self.shift)
        return {
            "weight": weight,
            "rows": weight if rows is None else rows,
            "mean_x": mean[:, :dim],
            "mean_y": mean[:, dim + 1 :],
            "gram": gram,
            "moment": joint[:, :, :dim].mT,
            "square": joint[:, :, dim + 1 :].diagonal(dim1=1, dim2=2),
        }


@lru_cache(maxsize=64)
def members_without_each(folds: int, device: torch.device) -> Float64[Tensor, "set fold"]:
    """1 where a fold belongs to a set: all of them to the first, all but one to each other."""
    with torch.inference_mode(False):
        within = 1 - torch.eye(folds, dtype=torch.float64, device="cpu")
        return torch.cat([torch.ones_like(within[:1]), within]).to(device)
