"""The log-linear probe: multiple linear regression of a target on the rows of an output embedding."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Float64, Shaped
from torch import Tensor

from trainhooks.numerics.products import exact_products
from trainhooks.probe.rows import Rows, SumsPass, sum_rows
from trainhooks.probe.scored import ProbeFit, score, squeeze
from trainhooks.probe.solve import smallest_eigenvalue, solve_moments, tolerance
from trainhooks.probe.sums import ProbeSums
from trainhooks.probe.target import effective_rows

WELL_CONDITIONED = 250
"""Smallest eigenvalue of a correlation matrix, over its rounding noise, from which a solution keeps 3 digits."""


@torch.no_grad()
def fit_probe(
    embedding: Float[Tensor, "vocab dim"],
    y: Float[Tensor, "vocab *target"],
    *,
    mask: Bool[Tensor, "vocab"] | None = None,
    weights: Float[Tensor, "vocab"] | None = None,
    folds: int = 5,
) -> ProbeFit:
    """Least squares with intercept of y on the rows E [vocab, dim], with held-out figures from folds by id mod 5.

    `y` is [vocab] or [vocab, target]: several targets share one Gram matrix. Any floating type and device; the
    first pass runs in float32 (float64 for float64 input, and where rows are fewer than 2 dim) with float64 sums.
    Where the smallest eigenvalue of the columns' correlation matrix is below 250 times `solve.tolerance`
    (7e-3 at dim 768), float32 sums cannot carry the solution and are made again in float64.
    Rank-deficient rows get the slope of least norm.

    Weights (>= 0) are none by default, see `shrunk_weights` and `sqrt_weights`.

    Raises ValueError for shapes that do not fit, an empty mask, rows or targets that are not finite (naming the
    first ids), and weights whose effective number of rows is below 3 times the rank.

    Source: Cho et al. 2025, arXiv 2406.01468, eq. for -log alpha = A . E + B; the held-out figures are this
    package's own.

    >>> embedding = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    >>> fit = fit_probe(embedding, embedding @ torch.tensor([1.0, -2.0, 0.0, 3.0]) + 5)
    >>> [round(value, 3) + 0.0 for value in fit.slope.tolist()], round(float(fit.intercept), 3)
    ([1.0, -2.0, 0.0, 3.0], 5.0)
    """
    rows = build_rows(embedding, as_columns(y), mask=mask, weights=weights, folds=folds)
    embedding = embedding.detach()
    with exact_products(embedding.device.type):
        first, exact = _sum_for_host(embedding, rows)
        found = solve_moments(first.moments, exact=exact)
        if float(found.pivot) < WELL_CONDITIONED * tolerance(first.moments):
            found = solve_moments(first.moments, exact=True)
        if weights is not None:
            _check_effective_rows(weights[rows.ids.to(weights.device)], rank=int(found.rank))
        fit = score(embedding, rows, first=first, found=found, norms=False).fit
    return fit if y.ndim > 1 else squeeze(fit)


def as_columns(y: Float[Tensor, "vocab *target"]) -> Float64[Tensor, "vocab target"]:
    """Targets as columns, one for a 1-D target."""
    return (y if y.ndim > 1 else y[:, None]).double()


def build_rows(
    embedding: Shaped[Tensor, "vocab dim"],
    targets: Float64[Tensor, "vocab target"],
    *,
    mask: Bool[Tensor, "vocab"] | None,
    weights: Float[Tensor, "vocab"] | None,
    folds: int,
    first_id: int = 0,
) -> Rows:
    """The rows of a fit on the embedding's device, after every check that needs no embedding values."""
    device, vocab = embedding.device, len(embedding)
    for name, values in (("targets", targets), ("the mask", mask), ("weights", weights)):
        if values is not None and len(values) != vocab:
            raise ValueError(
                f"{name} have {len(values)} rows; the output embedding has {vocab}. Give one for each row, padding "
                "included, and leave padding out with `mask`."
            )
    if embedding.ndim != 2 or embedding.shape[1] == 0:
        raise ValueError(f"the output embedding has shape {tuple(embedding.shape)}; needed is [vocab, dim], dim > 0.")
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(f"the mask has type {mask.dtype}; needed is one boolean for each row.")
    if folds < 2:
        raise ValueError(f"folds is {folds}; holding out needs 2 or more.")
    targets = targets.to(device)
    mask = torch.ones(vocab, dtype=torch.bool, device=device) if mask is None else mask.to(device)
    if not bool(mask.any()):
        raise ValueError("the mask leaves no row: fit on at least one token.")
    _refuse(mask & ~targets.isfinite().all(1), "targets", "Pass `mask=` without them (`token_mask`).")
    if weights is not None:
        weights = weights.to(device)
        _refuse(mask & ~((weights >= 0) & weights.isfinite()), "weights", "Weights must be finite and >= 0.")
        mask = mask & (weights > 0)
        if not bool(mask.any()):
            raise ValueError("the weights leave no row: give at least one row in the mask a weight above 0.")
    return Rows.build(targets, mask=mask, weights=weights, folds=folds, first_id=first_id)


def _refuse(bad: Tensor, what: str, advice: str) -> None:
    ids = bad.nonzero().flatten().tolist()
    if ids:
        raise ValueError(f"{what} of {len(ids)} rows are not usable numbers, ids {ids[:5]} first. {advice}")


def _check_effective_rows(weights: Tensor, *, rank: int) -> None:
    n_eff = effective_rows(weights)
    if n_eff < 3 * rank:
        raise ValueError(
            f"the weights amount to {n_eff:.0f} equal rows; needed are 3 x rank = {3 * rank}: a few tokens would "
            "decide the fit. Use `shrunk_weights`, or none."
        )


def product_dtype(embedding: Shaped[Tensor, "vocab dim"], *, rows: int) -> torch.dtype:
    """float64 for float64 input and for so few rows that it costs nothing, else float32."""
    few = rows < 2 * embedding.shape[1]
    return torch.float64 if few or embedding.dtype == torch.float64 else torch.float32


def needs_exact(rows: Rows, *, dim: int) -> bool:
    """Whether some fold's training rows are too few to span the columns, so that only the least norm is unique."""
    return len(rows) - max(rows.fold_sizes) <= dim


def _sum_for_host(embedding: Tensor, rows: Rows) -> tuple[SumsPass, bool]:
    """The first pass, again in float64 where float32 cannot carry the solution, and whether to solve exactly."""
    first = sum_rows(embedding, rows, dtype=product_dtype(embedding, rows=len(rows)))
    first.refuse_bad_rows(rows)
    total = first.moments.at(0)
    smallest = smallest_eigenvalue(total)
    if first.shift.dtype == torch.float32 and smallest < WELL_CONDITIONED * tolerance(total):
        first = sum_rows(embedding, rows, dtype=torch.float64)
        total = first.moments.at(0)
        smallest = smallest_eigenvalue(total)
    deficient = smallest < WELL_CONDITIONED * tolerance(total)
    return first, deficient or needs_exact(rows, dim=embedding.shape[1])


@torch.no_grad()
def probe_sums(
    embedding: Float[Tensor, "vocab dim"],
    y: Float[Tensor, "vocab *target"],
    *,
    mask: Bool[Tensor, "vocab"] | None = None,
    weights: Float[Tensor, "vocab"] | None = None,
    folds: int = 5,
    first_id: int = 0,
    dtype: torch.dtype = torch.float64,
) -> ProbeSums:
    """The sums of a probe over some rows, to be added to those of other rows with `+`.

    A rank that holds rows [first_id, first_id + vocab) of a larger matrix passes `first_id`, so that folds go by
    the id in the whole vocabulary. Products run in `dtype`, sums in float64. Raises ValueError as `fit_probe`.
    """
    rows = build_rows(embedding, as_columns(y), mask=mask, weights=weights, folds=folds, first_id=first_id)
    with exact_products(embedding.device.type):
        first = sum_rows(embedding.detach(), rows, dtype=dtype)
    first.refuse_bad_rows(rows)
    return first.sums
