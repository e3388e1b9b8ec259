"""The second pass of a probe: explicit predictions, and every figure that follows from their moments by fold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Shaped
from torch import Tensor

from trainhooks.core.html import card
from trainhooks.numerics.rank_correlation import average_ranks, pearson, ranks_to_scale, rounding_square
from trainhooks.probe.fold_moments import FoldMoments
from trainhooks.probe.projection import Projected, project_rows
from trainhooks.probe.rows import Rows, SumsPass
from trainhooks.probe.solve import Coefficients


@dataclass(frozen=True)
class ProbeFit:
    """A fitted probe y = E A + B: in-sample and held-out figures, one for each target (no axis for a 1-D target).

    `r2` in [0, 1]; `adjusted_r2` = 1 - (1 - r2)(n - 1)/(n - 1 - k), NaN where n <= k + 1; `null_r2` = k/(n - 1),
    what noise reaches in-sample. `heldout_r2` <= 1 compares with the mean of the training folds and is negative
    for a harmful probe; `heldout_mse` has the target's unit squared (nat^2); both pool all rows. Held-out
    `pearson` and `spearman` in [-1, 1] are taken in each fold and averaged over the folds that define them.
    `slope` A, `intercept` B, and `fold_slope`, `fold_intercept`: those fitted without each fold. `rank` k of the
    centred rows, `rows` n, `variance` var(y). With weights, all but Spearman and n are weighted.

    NaN: R^2 and correlations of a constant target (nothing to explain), correlations of a constant prediction
    (an embedding of equal rows), every held-out figure where all rows are in one fold.
    """

    r2: Float64[Tensor, "*target"]
    adjusted_r2: Float64[Tensor, "*target"]
    null_r2: Float64[Tensor, ""]
    heldout_r2: Float64[Tensor, "*target"]
    heldout_mse: Float64[Tensor, "*target"]
    heldout_pearson: Float64[Tensor, "*target"]
    heldout_spearman: Float64[Tensor, "*target"]
    slope: Float64[Tensor, "*target dim"]
    intercept: Float64[Tensor, "*target"]
    fold_slope: Float64[Tensor, "fold *target dim"]
    fold_intercept: Float64[Tensor, "fold *target"]
    rank: Float64[Tensor, ""]
    rows: Float64[Tensor, ""]
    variance: Float64[Tensor, "*target"]

    def __repr__(self) -> str:
        return f"ProbeFit({', '.join(f'{name}={value}' for name, value in self._told())})"

    def _repr_html_(self) -> str:
        return card("Frequency probe, held out in folds", self._told())

    def _told(self) -> list[tuple[str, str]]:
        """What a notebook shows of it: a number a target."""

        def number(values: Tensor) -> str:
            found = [f"{value:.4g}" for value in values.reshape(-1).tolist()]
            return found[0] if values.ndim == 0 else f"[{', '.join(found)}]"

        names = ("heldout_spearman", "heldout_pearson", "heldout_r2", "r2", "null_r2", "rows", "rank")
        return [(name, number(getattr(self, name))) for name in names]

    def predict(self, embedding: Float[Tensor, "row dim"]) -> Float64[Tensor, "row *target"]:
        """E A + B for any rows, in float64."""
        return embedding.double() @ self.slope.movedim(-1, 0) + self.intercept


@dataclass(frozen=True)
class Scored:
    """What the second pass leaves, small enough to travel: figures follow from it wherever it lies.

    `moments` are those of the columns that `layout` names. Predictions and residuals there lack their `level`, a number
    for each fold; `lift` is its part that the projected rows' shift is to blame for.
    """

    layout: ScoredColumns
    found: Coefficients
    moments: FoldMoments
    lift: Float64[Tensor, "fold columns"]
    weight: Float64[Tensor, ""]
    rows: Float64[Tensor, ""]
    mean_y: Float64[Tensor, "target"]

    @property
    def level(self) -> Float64[Tensor, "fold columns"]:
        """What is to be added to predictions, [held out, in-sample]: intercepts, and the shift's own prediction."""
        found = self.found
        intercepts = [found.fold_intercept, found.intercept.expand_as(found.fold_intercept)]
        return torch.cat(intercepts, 1) + self.lift

    def parts(self) -> dict[str, Tensor | float]:
        """All tensors and numbers by name, as `of` takes them back."""
        held = (vars(self), vars(self.found), vars(self.moments))
        return {name: value for one in held for name, value in one.items() if isinstance(value, (Tensor, float))}

    @classmethod
    def of(cls, parts: Mapping[str, Tensor | float], *, targets: int, norms: bool) -> Scored:
        """What `parts` gave, float64 all of them, and more."""

        def those(kind: type) -> dict[str, Any]:
            return {f.name: parts[f.name] for f in fields(kind) if f.name in parts}

        found = Coefficients(**{**those(Coefficients), "eps": float(parts["eps"])})
        moments = FoldMoments(**those(FoldMoments))
        return cls(layout=ScoredColumns(targets, norms), found=found, moments=moments, **those(cls))

    def varies(self) -> Bool[Tensor, "target"]:
        """Targets that are more than a constant."""
        return self.found.square > rounding_square(self.mean_y, self.weight)

    @property
    def fit(self) -> ProbeFit:
        """All figures."""
        found, moments, at = self.found, self.moments, self.layout
        level, square = self.level, found.square
        error = moments.square(at.held_out, about=level[:, : at.targets]).sum(0)
        spread = moments.square(at.y, about=found.trained_mean).sum(0)
        inside = moments.square(at.in_sample, about=level[:, at.targets :]).sum(0)
        varies, n, k = self.varies(), self.rows, found.rank
        r2 = (1 - inside / square).masked_fill_(~varies, torch.nan)
        linear, ranked = self._agreement(level[:, : at.targets])
        return ProbeFit(
            r2=r2,
            adjusted_r2=(1 - (1 - r2) * (n - 1) / (n - 1 - k)).masked_fill_(n <= k + 1, torch.nan),
            null_r2=k / (n - 1),
            heldout_r2=(1 - error / spread).masked_fill_(~varies, torch.nan),
            heldout_mse=error / self.weight,
            heldout_pearson=linear,
            heldout_spearman=ranked,
            slope=found.slope.T,
            intercept=found.intercept,
            fold_slope=found.fold_slope.mT,
            fold_intercept=found.fold_intercept,
            rank=k,
            rows=n,
            variance=square / self.weight,
        )

    def _agreement(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Pearson's and Spearman's correlation of what is held out, averaged over the folds that have one."""
        at = self.layout
        linear = self.moments.pearson(at.y, at.predicted, shift=level)
        ranked = self.moments.pearson(at.y_ranks, at.predicted_ranks).masked_fill(linear.isnan(), torch.nan)
        # what a constant target teaches is rounding, and so is what it correlates with
        both = torch.stack([linear, ranked]).masked_fill_(~self.found.trained_varies, torch.nan)
        linear, ranked = both.nanmean(1)
        return linear, ranked


@dataclass(frozen=True)
class ScoredColumns:
    """Where the columns of `Scored.moments` stand: `targets` of each, and one of row norms where there are `norms`.

    Targets, what is predicted of them held out, norms; residuals held out and in-sample; ranks of the first three.
    """

    targets: int
    norms: bool

    def _slice(self, targets_before: int, *, norms_before: int = 0) -> slice:
        start = targets_before * self.targets + norms_before * self.norms
        return slice(start, start + self.targets)

    y = property(lambda self: self._slice(0))
    predicted = property(lambda self: self._slice(1))
    held_out = property(lambda self: self._slice(2, norms_before=1))
    in_sample = property(lambda self: self._slice(3, norms_before=1))
    y_ranks = property(lambda self: self._slice(4, norms_before=1))
    predicted_ranks = property(lambda self: self._slice(5, norms_before=1))

    @property
    def ranked(self) -> int:
        """How many columns, the first ones, have ranks, the last ones."""
        return 2 * self.targets + self.norms


def score(
    embedding: Shaped[Tensor, "vocab dim"], rows: Rows, *, first: SumsPass, found: Coefficients, norms: bool = True
) -> Scored:
    """The second pass: explicit predictions, whose error is second order in that of the coefficients.

    `norms` adds the norms of the centred rows, of which `fit_row_norms` makes a baseline.
    """
    whole = first.moments.at(0)
    layout = ScoredColumns(len(whole.mean_y), norms)
    slopes = torch.cat([found.fold_slope, found.slope.expand_as(found.fold_slope)], 2)
    projected = project_rows(embedding, rows, first=first, by_fold=slopes)
    return Scored(
        layout=layout,
        found=found,
        moments=scored_moments(rows, projected, keep=first.keep, keeps_all=first.keeps_all, layout=layout),
        lift=projected.shift @ slopes,
        weight=whole.weight,
        rows=whole.rows,
        mean_y=whole.mean_y,
    )


def scored_moments(
    rows: Rows, projected: Projected, *, keep: Bool[Tensor, "fold longest"], keeps_all: bool, layout: ScoredColumns
) -> FoldMoments:
    """The moments of all columns that a layout names, over the rows of `keep`, which may be all (`Rows.table`)."""
    y, both, keep = rows.line_y, projected.values, keep[:, None]
    residuals = (y.unsqueeze(1) - both.unflatten(1, (2, -1))).flatten(1, 2)
    norms = [projected.norms[:, None]] if layout.norms else []
    columns = torch.cat([y, both[:, : layout.targets], *norms, residuals], 1)
    lost = ~keep
    if not keeps_all:
        columns.masked_fill_(lost, 0)
    known = [rows.target_ranks] if keeps_all else []
    ranked = columns[:, layout.targets * len(known) : layout.ranked]
    ranks = ranks_to_scale(ranked.masked_fill(lost, torch.inf))  # behind all others, where no rank is disturbed
    columns = torch.cat([columns, *known, ranks], 1)
    weights = keep.double()
    if rows.root_weights is not None:
        own = weights * rows.root_weights.square()[rows.table[0]][:, None]
        plain = columns.shape[1] - layout.ranked
        weights = torch.cat([own.expand(-1, plain, -1), weights.expand(-1, layout.ranked, -1)], 1)
    return FoldMoments.of(columns, weights=weights)


def spearman_by_fold(
    rows: Rows, predicted: Float64[Tensor, "row target"], *, finite: Bool[Tensor, "row"]
) -> Float64[Tensor, "target fold"]:
    """Spearman's correlation of the first targets with what is predicted of them, over each fold's finite rows."""
    at, real = rows.table
    keep = (real & finite[at])[:, None]
    both = torch.stack([rows.line_y[:, : predicted.shape[1]], predicted.T[:, at].transpose(0, 1)])
    return pearson(*average_ranks(both.masked_fill_(~keep, torch.inf)), weights=keep.double()).T


def squeeze(fit: ProbeFit, *, target: int = 0) -> ProbeFit:
    """One target of a fit of several, without the target axis."""
    shared = {"null_r2", "rank", "rows"}
    parts = {}
    for name, value in vars(fit).items():
        axis = 1 if name.startswith("fold_") else 0
        parts[name] = value if name in shared else value.select(axis, target)
    return ProbeFit(**parts)
