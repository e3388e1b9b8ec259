"""How a probe's slope moves between steps, and whether it still holds on another step's embedding."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from trainhooks.numerics.products import exact_products
from trainhooks.probe.fit import ProbeFit, as_columns, build_rows
from trainhooks.probe.rows import project_rows, sum_rows


def slope_cosine(a: Float[Tensor, "*target dim"], b: Float[Tensor, "*target dim"]) -> Float64[Tensor, "*target"]:
    """cos(A, A') of two slopes in [-1, 1]: drift, against the step before or the final one. NaN where one is 0."""
    a, b = a.double(), b.double()
    norms = torch.linalg.vector_norm(a, dim=-1) * torch.linalg.vector_norm(b, dim=-1)
    cosine: Tensor = ((a * b).sum(-1) / norms).clamp(-1, 1).masked_fill(~(norms > 0), torch.nan)
    return cosine


@torch.no_grad()
def transfer_r2(
    fit: ProbeFit,
    embedding: Float[Tensor, "vocab dim"],
    y: Float[Tensor, "vocab *target"],
    *,
    mask: Bool[Tensor, "vocab"] | None = None,
) -> Float64[Tensor, "*target"]:
    """Held-out R^2 (at most 1) of the slopes of one step on the embedding of another, [target].

    Each fold of rows is predicted by the slope that was fitted without those tokens; the level comes from the
    means of the other folds' rows and targets, since a shift of all rows (a softmax gauge) says nothing. The same
    step gives `fit.heldout_r2`. NaN for a constant target.

    Raises ValueError where widths or numbers of targets differ, and as `fit_probe`.
    """
    folds, dim = len(fit.fold_slope), embedding.shape[1]
    if fit.slope.shape[-1] != dim:
        raise ValueError(f"the slope has {fit.slope.shape[-1]} dimensions; the output embedding has {dim}.")
    rows = build_rows(embedding, as_columns(y), mask=mask, weights=None, folds=folds)
    slopes = fit.fold_slope.reshape(folds, -1, dim).mT.to(embedding.device)
    if slopes.shape[2] not in (1, rows.y.shape[1]):
        raise ValueError(f"the fit has {slopes.shape[2]} targets and y has {rows.y.shape[1]}: give the same ones.")
    none = slopes.new_zeros(dim, 0)
    with exact_products(embedding.device.type):
        first = sum_rows(embedding.detach(), rows, dtype=torch.float64)
        first.refuse_bad_rows(rows)
        predicted, _ = project_rows(embedding.detach(), rows, first=first, by_fold=slopes, for_all=none)
    total = first.sums.total()
    error, spread = torch.zeros_like(total.square), torch.zeros_like(total.square)
    for fold, where in enumerate(rows.fold_slices()):
        trained = first.sums.without(fold)
        level = trained.mean_y - (trained.mean_x - first.shift) @ slopes[fold]
        error += (rows.y[where] - predicted[where] - level).square().sum(0)
        spread += (rows.y[where] - trained.mean_y).square().sum(0)
    varies = total.varies()
    return (1 - error / spread).where(varies, torch.nan).reshape(y.shape[1:])
