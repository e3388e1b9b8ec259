"""Second moments of columns by fold, small enough to travel: what figures of a fit need of its rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from trainhooks.numerics.rank_correlation import rounding_square


@dataclass(frozen=True)
class FoldMoments:
    """Weight and mean of each column in each fold, and the columns' products about those means."""

    fold_weight: Float64[Tensor, "fold column"]
    fold_mean: Float64[Tensor, "fold column"]
    second: Float64[Tensor, "fold column column"]

    @classmethod
    def of(
        cls, columns: Float64[Tensor, "fold column row"], *, weights: Float64[Tensor, "fold weight row"]
    ) -> FoldMoments:
        """Moments of columns that are finite wherever they weigh; `weights` of each column, or one for all.

        Overwrites `columns`.
        """
        weight = weights.sum(-1)
        total = weight.clamp_min(torch.finfo(torch.float64).tiny)
        mean = (columns @ weights.mT)[..., 0] if weights.shape[1] == 1 else (columns * weights).sum(-1)
        mean = mean.div_(total)
        columns.sub_(mean[..., None])
        second = (columns * weights) @ columns.mT
        return cls(weight.expand_as(mean), mean, second)

    def square(self, column: slice, *, about: Float64[Tensor, "fold some"]) -> Float64[Tensor, "fold some"]:
        """The weighted sum of squares of columns about a value of each fold."""
        own = self.second.diagonal(dim1=1, dim2=2)[:, column]
        return own + self.fold_weight[:, column] * (self.fold_mean[:, column] - about).square()

    def pearson(self, a: slice, b: slice, *, shift: Tensor | float = 0.0) -> Float64[Tensor, "fold some"]:
        """Pearson's correlation of columns `a` with as many others; as `rank_correlation.pearson`.

        `shift` is what the columns `b` were moved by, which their rounding depends on.
        """
        diagonal = self.second.diagonal(dim1=1, dim2=2)
        noise = torch.stack(
            [
                rounding_square(self.fold_mean[:, a], self.fold_weight[:, a]),
                rounding_square(self.fold_mean[:, b] + shift, self.fold_weight[:, b]),
            ]
        )
        square = torch.stack([diagonal[:, a], diagonal[:, b]])
        scale = (square * (square > noise)).sqrt().prod(0)
        both = self.second[:, a, b].diagonal(dim1=1, dim2=2)
        return (both / scale).masked_fill(scale <= 0, torch.nan).clamp(-1, 1)
