"""What a probe is compared with: the row norm alone, token covariates alone, and the rows of unseen tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Shaped
from torch import Tensor

from trainhooks.numerics.rank_correlation import rounding_square
from trainhooks.probe.fit import ProbeFit, Scored, as_columns, build_rows, fit_probe, spearman_by_fold
from trainhooks.probe.rows import Rows, refuse_rows

BLOCK_ROWS = 2048

SPACE_MARKS = (" ", "\u0120", "\u2581")
"""How token texts begin after a space: the space itself, GPT-2's byte-level mark, SentencePiece's mark."""


def row_norms(
    embedding: Float[Tensor, "vocab dim"], *, mask: Bool[Tensor, "vocab"] | None = None
) -> Float64[Tensor, "vocab"]:
    """|E_w - mean over the mask| for every row [vocab], in the embedding's unit; half precision is read as float32.

    All NaN where a row of the mask is not finite, or none is left.
    """
    inside = embedding if mask is None else embedding[mask.to(embedding.device)]
    mean = inside.detach().sum(0, dtype=torch.float64) / len(inside)
    wide = torch.promote_types(embedding.dtype, torch.float32)
    norms: Tensor = torch.linalg.vector_norm(embedding.detach().to(wide) - mean.to(wide), dim=1, dtype=torch.float64)
    return norms


def norm_folded(embedding: Float[Tensor, "vocab dim"], norm_weight: Float[Tensor, "dim"]) -> Float[Tensor, "vocab dim"]:
    """E diag(gamma): the output embedding with the last norm's weight folded in.

    Without a zero in gamma, the probe's predictions and R^2 are those of E (columns are only scaled) and its slope
    is A / gamma; row norms and similarities differ. For norms that multiply by 1 + weight, pass 1 + weight.
    """
    return embedding * norm_weight.to(embedding.dtype)


@torch.no_grad()
def row_norm_probe(
    embedding: Float[Tensor, "vocab dim"],
    y: Float[Tensor, "vocab *target"],
    *,
    mask: Bool[Tensor, "vocab"] | None = None,
    weights: Float[Tensor, "vocab"] | None = None,
    folds: int = 5,
) -> ProbeFit:
    """The probe's figures with a single feature, the norm of the centred row: what a probe must beat.

    Arguments and errors as `fit_probe`.
    """
    rows = build_rows(embedding, as_columns(y), mask=mask, weights=weights, folds=folds)
    # one bad row spoils the mean and with it every norm: name it, and not all of them
    finite = torch.linalg.vector_norm(embedding.detach(), dim=1, dtype=torch.float64).isfinite()
    refuse_rows(rows.ids[~finite[rows.ids]])
    return fit_probe(row_norms(embedding, mask=mask)[:, None], y, mask=mask, weights=weights, folds=folds)


@dataclass(frozen=True)
class RowNormFit:
    """What of `row_norm_probe` a record keeps: see `ProbeFit`."""

    heldout_spearman: Float64[Tensor, ""]
    heldout_r2: Float64[Tensor, ""]


def fit_row_norms(scored: Scored, rows: Rows) -> RowNormFit:
    """`row_norm_probe` of the first target, unweighted, from the norms that a probe's second pass leaves.

    With one feature the regression has a closed form, and the ranks of its predictions are those of the norms, or
    their reverse: a third of the time of the general path at 8,192 rows.
    """
    at, real = rows.table
    finite = scored.row_norms.isfinite()
    keep = (real & finite[at]).double()
    total = keep.sum()
    x = scored.row_norms.masked_fill(~finite, 0)[at]
    both, (x_noise, y_noise) = _about_mean(torch.stack([x, rows.line_y[0]]), keep, total)
    x, y = both
    # sums over all rows but each fold's
    sums = torch.stack([keep, x, y, x * x, x * y]).sum(2)
    n, sx, sy, sxx, sxy = sums.sum(1, keepdim=True) - sums
    mean_x, mean_y = sx / n, sy / n
    spread = sxx - sx * mean_x
    slope = ((sxy - sx * mean_y) / spread).masked_fill(~(spread > x_noise), 0)
    from_mean = y - mean_y[:, None]
    error = from_mean - slope[:, None] * (x - mean_x[:, None])
    wrong, apart = (torch.stack([error, from_mean]).square_() * keep).sum((1, 2))
    agreement = spearman_by_fold(rows, scored.row_norms[:, None], finite=finite)[0]
    return RowNormFit(
        heldout_spearman=(agreement * slope.sign()).masked_fill(slope == 0, torch.nan).nanmean(),
        heldout_r2=(1 - wrong / apart).masked_fill(~(y.square().sum() > y_noise), torch.nan),
    )


def _about_mean(values: Tensor, keep: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Values less their mean [value], 0 where they are not kept, and what rounding the mean can leave of squares."""
    mean = (values * keep).sum((1, 2)) / total
    return (values - mean[:, None, None]) * keep, rounding_square(mean, total)


def token_covariates(token_texts: Sequence[str]) -> Float64[Tensor, "vocab 3"]:
    """What is known of tokens without a model: id, length in UTF-8 bytes, 1 with a leading space else 0.

    Texts are decoded ones; a leading mark of a tokenizer (`SPACE_MARKS`) counts as the space it stands for.
    """
    found = []
    for index, text in enumerate(token_texts):
        spaced = text.startswith(SPACE_MARKS)
        size = (
            len(text[1:].encode("utf-8", errors="surrogatepass")) + 1
            if spaced
            else len(text.encode("utf-8", errors="surrogatepass"))
        )
        found.append((float(index), float(size), float(spaced)))
    return torch.tensor(found, dtype=torch.float64).reshape(-1, 3)


@dataclass(frozen=True)
class CovariateGain:
    """Held-out figures of covariates alone and of the embedding with them; gains are what the embedding adds."""

    covariates: ProbeFit
    joint: ProbeFit

    @property
    def r2_gain(self) -> Float64[Tensor, "*target"]:
        """Held-out R^2[E, covariates] - R^2[covariates]; at most 1, negative where E only adds noise."""
        return self.joint.heldout_r2 - self.covariates.heldout_r2

    @property
    def spearman_gain(self) -> Float64[Tensor, "*target"]:
        """Held-out Spearman with E and covariates, less that of covariates alone."""
        return self.joint.heldout_spearman - self.covariates.heldout_spearman


def covariate_gain(
    embedding: Float[Tensor, "vocab dim"],
    covariates: Float[Tensor, "vocab covariate"],
    y: Float[Tensor, "vocab *target"],
    *,
    mask: Bool[Tensor, "vocab"] | None = None,
    folds: int = 5,
) -> CovariateGain:
    """What the embedding knows beyond token covariates. Errors as `fit_probe`."""
    return CovariateGain(
        covariates=fit_probe(covariates.double(), y, mask=mask, folds=folds),
        joint=fit_probe(beside(embedding, covariates, mask=mask), y, mask=mask, folds=folds),
    )


def beside(
    embedding: Float[Tensor, "vocab dim"],
    columns: Float[Tensor, "row column"],
    *,
    mask: Bool[Tensor, "vocab"] | None = None,
) -> Float[Tensor, "vocab wider"]:
    """The embedding with more columns, brought to the spread of its own so that no rank decision turns on units.

    Copies the embedding, half precision as float32 (token ids have more digits than bfloat16). Predictions of a probe
    do not depend on a column's unit; a constant column becomes 0. Raises ValueError for columns of another length.
    """
    if len(columns) != len(embedding):
        raise ValueError(f"the columns have {len(columns)} rows; the output embedding has {len(embedding)}.")
    embedding = embedding.to(torch.promote_types(embedding.dtype, torch.float32))
    embedding, columns = embedding.detach(), columns.to(embedding.device).double()
    keep = slice(None) if mask is None else mask.to(embedding.device)
    spread = columns[keep].std(0, correction=0)
    centred = columns - columns[keep].mean(0)
    inside = embedding[keep]
    # squares in float64: those of a tiny embedding would vanish, and no column would fit its scale
    target = torch.linalg.vector_norm(inside - inside.mean(0), dim=0, dtype=torch.float64).mean() / len(inside) ** 0.5
    factor = torch.where((spread > 0) & (target > 0), target / spread, 1)
    return torch.cat([embedding, (centred * factor).to(embedding.dtype)], 1)


@dataclass(frozen=True)
class NeverLabels:
    """Rows of tokens that were never a label: their mean predicted target (nats) and mean pairwise cosine."""

    prediction: Float64[Tensor, "*target"]
    cosine: Float64[Tensor, ""]


@torch.no_grad()
def never_label_control(
    embedding: Shaped[Tensor, "vocab dim"],
    never: Bool[Tensor, "vocab"],
    *,
    slope: Float64[Tensor, "*target dim"],
    intercept: Float64[Tensor, "*target"],
    mean_row: Float64[Tensor, "dim"],
) -> NeverLabels:
    """A control, not a null: the softmax gradient moves rows that are never a label (padding, unseen) together.

    The prediction is that of the probe (`slope`, `intercept`), the cosine that of rows about `mean_row` (the mean
    of the probe's rows), from |sum of unit rows|^2; in [-1/(m - 1), 1]. NaN with no row (cosine: with fewer than
    two). Rows that are not finite, and for the cosine rows equal to the mean, are left out.
    """
    ids = never.to(embedding.device).nonzero().flatten()
    return never_label_rows(embedding.detach(), ids, slope=slope, intercept=intercept, mean_row=mean_row)


def never_label_rows(
    embedding: Tensor, ids: Tensor, *, slope: Tensor, intercept: Tensor, mean_row: Tensor
) -> NeverLabels:
    """`never_label_control` for ids that are known: no wait for the device."""
    options: dict[str, Any] = {"dtype": torch.float64, "device": embedding.device}
    summed, units = torch.zeros(embedding.shape[1], **options), torch.zeros(embedding.shape[1], **options)
    rows_in, units_in = torch.zeros((), **options), torch.zeros((), **options)
    for block in ids.split(BLOCK_ROWS):
        rows = embedding.index_select(0, block).double()
        finite = rows.isfinite().all(1, keepdim=True)
        rows = torch.where(finite, rows, 0)
        centred = torch.where(finite, rows - mean_row, 0)
        norms = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
        summed += rows.sum(0)
        units += (centred / norms.where(norms > 0, 1)).sum(0)
        rows_in += finite.sum()
        units_in += (norms > 0).sum()
    cosine = (units.square().sum() - units_in) / (units_in * (units_in - 1))
    return NeverLabels(
        prediction=torch.where(rows_in > 0, slope @ (summed / rows_in) + intercept, torch.nan),
        cosine=torch.where(units_in > 1, cosine, torch.nan),
    )
