"""How a probe's slope moves between steps, and whether it still holds on another step's embedding."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from trainhooks.numerics.products import exact_products
from trainhooks.probe.fit import as_columns, build_rows
from trainhooks.probe.projection import project_rows
from trainhooks.probe.rows import sum_rows
from trainhooks.probe.scored import ProbeFit


def slope_cosine(a: Float[Tensor, "*target dim"], b: Float[Tensor, "*target dim"]) -> Float64[Tensor, "*target"]:
    """cos(A, A') of two slopes in [-1, 1]: drift, against the step before or the final one. NaN where one is 0."""
    a, b = a.double(), b.double()
    norms = torch.linalg.vector_norm(a, dim=-1) * torch.linalg.vector_norm(b, dim=-1)
    cosine: Tensor = ((a * b).sum(-1) / norms).clamp(-1, 1).masked_fill(~(norms > 0), torch.nan)
    return cosine


def cosine_of_products(products: Float64[Tensor, "2 2"]) -> Float64[Tensor, ""]:
    """`slope_cosine` of two slopes whose products with each other these are."""
    norms = products.diagonal().sqrt().prod()
    return (products[0, 1] / norms).clamp(-1, 1).masked_fill(~(norms > 0), torch.nan)


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
    with exact_products(embedding.device.type):
        first = sum_rows(embedding.detach(), rows, dtype=torch.float64)
        first.refuse_bad_rows(rows)
        projected = project_rows(embedding.detach(), rows, first=first, by_fold=slopes)
    trained, whole = first.moments, first.moments.at(0)
    level = trained.mean_y[1:, None] - (trained.mean_x[1:, None] - projected.shift) @ slopes
    keep = first.keep[..., None]
    guesses = torch.stack([projected.values.mT + level, trained.mean_y[1:, None].expand_as(rows.line_y.mT)])
    error, spread = ((rows.line_y.mT - guesses).square() * keep).sum((1, 2))
    r2: Tensor = (1 - error / spread).where(whole.varies(), torch.nan).reshape(y.shape[1:])
    return r2
