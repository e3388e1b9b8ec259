"""The log-linear probe: multiple linear regression of a target on the rows of an output embedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Shaped
from torch import Tensor

from trainhooks.numerics.products import exact_products
from trainhooks.numerics.rank_correlation import average_ranks, pearson
from trainhooks.probe.rows import Rows, SumsPass, project_rows, sum_rows
from trainhooks.probe.solve import Coefficients, smallest_eigenvalue, solve_sums, tolerance
from trainhooks.probe.sums import Moments, ProbeSums
from trainhooks.probe.target import effective_rows

WELL_CONDITIONED = 250
"""Smallest eigenvalue of a correlation matrix, over its rounding noise, from which a solution keeps 3 digits."""


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

    def predict(self, embedding: Float[Tensor, "row dim"]) -> Float64[Tensor, "row *target"]:
        """E A + B for any rows, in float64."""
        return embedding.double() @ self.slope.movedim(-1, 0) + self.intercept


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
    """
    rows = build_rows(embedding, as_columns(y), mask=mask, weights=weights, folds=folds)
    embedding = embedding.detach()
    with exact_products(embedding.device.type):
        first, exact = _sum_for_host(embedding, rows)
        found = solve_sums(first.sums, exact=exact)
        if float(found.pivot) < WELL_CONDITIONED * tolerance(first.sums.total()):
            found = solve_sums(first.sums, exact=True)
        if weights is not None:
            _check_effective_rows(weights[rows.ids.to(weights.device)], rank=int(found.rank))
        fit = score(embedding, rows, first=first, found=found).fit
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
    total = first.sums.total()
    smallest = smallest_eigenvalue(total)
    if first.shift.dtype == torch.float32 and smallest < WELL_CONDITIONED * tolerance(total):
        first = sum_rows(embedding, rows, dtype=torch.float64)
        total = first.sums.total()
        smallest = smallest_eigenvalue(total)
    deficient = smallest < WELL_CONDITIONED * tolerance(total)
    return first, deficient or needs_exact(rows, dim=embedding.shape[1])


@dataclass(frozen=True)
class Scored:
    """A fit, and the norm of each centred row (NaN where it is not finite), in the order of the rows."""

    fit: ProbeFit
    row_norms: Float64[Tensor, "row"]


def score(embedding: Shaped[Tensor, "vocab dim"], rows: Rows, *, first: SumsPass, found: Coefficients) -> Scored:
    """The second pass: explicit predictions, whose error is second order in that of the coefficients."""
    total = first.sums.total()
    shift = first.shift.double()
    to_mean = total.mean_x - shift
    held_out, shared = project_rows(
        embedding,
        rows,
        first=first,
        by_fold=found.fold_slope,
        for_all=torch.cat([found.slope, to_mean[:, None]], 1),
    )
    predicted = held_out + _by_row(found.fold_intercept + shift @ found.fold_slope, rows)
    fitted = shared[:, :-1] + found.intercept + shift @ found.slope
    norms = (first.square_norms.double() - 2 * shared[:, -1] + to_mean.square().sum()).clamp_min(0).sqrt()
    fit = _figures(rows, first.finite, found=found, total=total, predicted=predicted, fitted=fitted)
    return Scored(fit=fit, row_norms=norms.masked_fill(~first.finite, torch.nan))


def _by_row(values: Tensor, rows: Rows) -> Tensor:
    """A value for each fold [fold, target], repeated for the fold's rows [row, target]."""
    return torch.cat([value.expand(size, -1) for value, size in zip(values, rows.fold_sizes, strict=True)])


def _figures(
    rows: Rows,
    finite: Tensor,
    *,
    found: Coefficients,
    total: Moments,
    predicted: Tensor,
    fitted: Tensor,
) -> ProbeFit:
    weights = finite.double() if rows.root_weights is None else finite * rows.root_weights.square()
    guesses = torch.stack([predicted, _by_row(found.trained_mean, rows), fitted], 1)
    residual = (guesses - rows.y[:, None]).square_().flatten(1)
    error, spread, inside = (weights @ residual).view(3, -1)
    varies = total.varies()
    n, k = total.rows, found.rank
    r2 = (1 - inside / total.square).masked_fill_(~varies, torch.nan)
    learnt = found.trained_varies.T  # what a constant target teaches is rounding, and so is what it correlates with
    by_fold = _agreement_by_fold(rows, predicted, finite=finite)
    linear, ranked = by_fold.masked_fill_(~learnt, torch.nan).nanmean(-1)
    return ProbeFit(
        r2=r2,
        adjusted_r2=(1 - (1 - r2) * (n - 1) / (n - 1 - k)).masked_fill_(n <= k + 1, torch.nan),
        null_r2=k / (n - 1),
        heldout_r2=(1 - error / spread).masked_fill_(~varies, torch.nan),
        heldout_mse=error / total.weight,
        heldout_pearson=linear,
        heldout_spearman=ranked,
        slope=found.slope.T,
        intercept=found.intercept,
        fold_slope=found.fold_slope.mT,
        fold_intercept=found.fold_intercept,
        rank=k,
        rows=n,
        variance=total.square / total.weight,
    )


def spearman_by_fold(
    rows: Rows, predicted: Float64[Tensor, "row target"], *, finite: Bool[Tensor, "row"]
) -> Float64[Tensor, "target fold"]:
    """Spearman's correlation of the first targets with what is predicted of them, over each fold's finite rows."""
    at, real = rows.table
    ranks, keep = _ranks_by_fold(rows, predicted.T[:, at], finite=finite)
    return pearson(*ranks, weights=(real if keep is None else keep).double())


def _agreement_by_fold(
    rows: Rows, predicted: Float64[Tensor, "row target"], *, finite: Bool[Tensor, "row"]
) -> Float64[Tensor, "2 target fold"]:
    """Pearson's correlation, weighted, and Spearman's, over each fold's finite rows."""
    at, real = rows.table
    guess = predicted.T[:, at]
    ranks, keep = _ranks_by_fold(rows, guess, finite=finite)
    weights = (real if keep is None else keep).double()
    if rows.root_weights is not None:
        weights = torch.stack([weights * rows.root_weights.square()[at], weights])[:, None]
    return pearson(torch.stack([rows.line_y, ranks[0]]), torch.stack([guess, ranks[1]]), weights=weights)


def _ranks_by_fold(
    rows: Rows, guess: Float64[Tensor, "target fold longest"], *, finite: Bool[Tensor, "row"]
) -> tuple[Sequence[Tensor], Bool[Tensor, "fold longest"] | None]:
    """Average ranks of the first targets and of what is guessed, and which rows they are of (None: all real ones)."""
    at, real = rows.table
    # on a device the question would wait, and ranks are cheap there
    if finite.device.type == "cpu" and finite.numpy().all():
        return (rows.target_ranks[: len(guess)], average_ranks(guess.masked_fill(~real, torch.inf))), None
    keep = real & finite[at]
    return average_ranks(torch.stack([rows.line_y[: len(guess)], guess]).masked_fill_(~keep, torch.inf)).unbind(), keep


def squeeze(fit: ProbeFit, *, target: int = 0) -> ProbeFit:
    """One target of a fit of several, without the target axis."""
    shared = {"null_r2", "rank", "rows"}
    parts = {}
    for name, value in vars(fit).items():
        axis = 1 if name.startswith("fold_") else 0
        parts[name] = value if name in shared else value.select(axis, target)
    return ProbeFit(**parts)


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
