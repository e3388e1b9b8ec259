"""What a probe is compared with: the row norm alone, token covariates alone, and the rows of unseen tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Shaped
from torch import Tensor

from trainhooks.numerics.rank_correlation import rounding_square
from trainhooks.probe.fit import as_columns, build_rows, fit_probe
from trainhooks.probe.rows import HOSTS, LINE_ELEMENTS, Rows, refuse_rows
from trainhooks.probe.scored import ProbeFit, Scored

BLOCK_ROWS = 2048
CACHED_ELEMENTS = 1 << 16
"""Elements of float64 that a core's cache holds beside what is made of them."""

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


def fit_row_norms(scored: Scored, rows: Rows | None = None) -> RowNormFit:
    """`row_norm_probe` of the first target, unweighted, from the norms that a probe's second pass leaves.

    With one feature the regression has a closed form, and the ranks of its predictions are those of the norms, or
    their reverse: a third of the time of the general path at 8,192 rows. `rows` are not looked at any more.
    """
    moments, at = scored.moments, scored.layout
    norm, last = at.ranked - 1, moments.fold_mean.shape[1] - 1
    n, mean_x, mean_y = moments.fold_weight[:, 0], moments.fold_mean[:, norm], moments.fold_mean[:, 0]
    xx, xy, yy = moments.second[:, norm, norm], moments.second[:, norm, 0], moments.second[:, 0, 0]
    # about the means of all rows, so that nothing cancels; then sums over all rows but each fold's
    total = n.sum()
    whole_x, whole_y = (n * mean_x).sum() / total, (n * mean_y).sum() / total
    x, y = mean_x - whole_x, mean_y - whole_y
    sums = torch.stack([n, n * x, n * y, xx + n * x * x, xy + n * x * y])
    others, sx, sy, sxx, sxy = sums.sum(1, keepdim=True) - sums
    trained_x, trained_y = sx / others, sy / others
    spread = sxx - sx * trained_x
    x_noise, y_noise = rounding_square(whole_x, total), rounding_square(whole_y, total)
    slope = ((sxy - sx * trained_y) / spread).masked_fill(~(spread > x_noise), 0)
    level = y - trained_y
    left = (yy - 2 * slope * xy + slope.square() * xx).clamp_min(0)
    wrong = (left + n * (level - slope * (x - trained_x)).square()).sum()
    apart = (yy + n * level.square()).sum()
    first = at.y_ranks.start
    agreement = moments.pearson(slice(first, first + 1), slice(last, last + 1))[:, 0]
    return RowNormFit(
        heldout_spearman=(agreement * slope.sign()).masked_fill(slope == 0, torch.nan).nanmean(),
        heldout_r2=(1 - wrong / apart).masked_fill(~((yy + n * y.square()).sum() > y_noise), torch.nan),
    )


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
    sums = sum_unseen(embedding.detach(), ids, mean_row=mean_row, slope=slope)
    return sums.figures(intercept=intercept)


@dataclass(frozen=True)
class UnseenSums:
    """Sums over never-label rows: how many are finite, how many are not the mean row, and what figures need beside.

    `unseen_prediction` is the mean of slope . row, `unseen_square` the square of the sum of unit rows.
    """

    unseen_rows: Float64[Tensor, ""]
    unseen_units: Float64[Tensor, ""]
    unseen_prediction: Float64[Tensor, "*target"]
    unseen_square: Float64[Tensor, ""]

    @classmethod
    def of(cls, values: Mapping[str, Tensor]) -> UnseenSums:
        """Those among other values by their names."""
        return cls(**{f.name: values[f.name] for f in fields(cls)})

    def figures(self, *, intercept: Float64[Tensor, "*target"]) -> NeverLabels:
        """The control."""
        units = self.unseen_units
        cosine = (self.unseen_square - units) / (units * (units - 1))
        prediction = self.unseen_prediction + intercept
        return NeverLabels(
            prediction=prediction.masked_fill(self.unseen_rows <= 0, torch.nan),
            cosine=cosine.masked_fill(units <= 1, torch.nan),
        )


def sum_unseen(embedding: Tensor, ids: Tensor, *, mean_row: Tensor, slope: Tensor) -> UnseenSums:
    """The sums of rows that are known by id: no wait for the device."""
    options: dict[str, Any] = {"dtype": torch.float64, "device": embedding.device}
    on_host, dim = embedding.device.type in HOSTS, len(mean_row)
    limit = max(1, CACHED_ELEMENTS // dim) if on_host else max(BLOCK_ROWS, LINE_ELEMENTS // dim)
    sums, counts = torch.zeros(2, len(mean_row), **options), torch.zeros(2, **options)
    zero = torch.zeros((), **options)
    for block in ids.split(limit):
        centred = embedding.index_select(0, block).double().sub_(mean_row)
        norms = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
        finite = norms.isfinite()  # a row that is not finite has no finite sum of squares
        if not on_host or not finite.numpy().all():
            centred, norms = torch.where(finite, centred, zero), torch.where(finite, norms, zero)
        weights = torch.cat([finite.double(), norms.clamp_min(torch.finfo(torch.float64).tiny).reciprocal()], 1)
        sums.addmm_(weights.T, centred)
        counts.add_(torch.cat([finite, norms > zero], 1).sum(0))
    mean = sums[0] / counts[0].clamp_min(1) + mean_row
    return UnseenSums(counts[0], counts[1], slope @ mean, torch.dot(sums[1], sums[1]))
