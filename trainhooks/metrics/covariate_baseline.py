"""What token covariates alone know of frequency, live, and what the output embedding adds to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from trainhooks.core.schedule import Schedule
from trainhooks.core.variable import Variable
from trainhooks.metrics.base import Metric, State
from trainhooks.metrics.cached_by_shape import CachedByShape
from trainhooks.metrics.fold_outputs import FOLDS, HELD_OUT
from trainhooks.metrics.shared_sums import share_probe_sums, shared_probe_pass
from trainhooks.numerics.products import exact_products
from trainhooks.numerics.row_blocks import zero_rows
from trainhooks.numerics.row_sums import RowSet
from trainhooks.probe.baselines import token_covariates
from trainhooks.probe.fit import needs_exact, product_dtype
from trainhooks.probe.projection import project_rows
from trainhooks.probe.row_selection import RowSelection
from trainhooks.probe.rows import Rows, SumsPass, fold_blocks, sum_rows
from trainhooks.probe.scored import spearman_by_fold
from trainhooks.probe.solve import Coefficients, solve_sums
from trainhooks.probe.sums import ProbeSums
from trainhooks.probe.target import as_counts

COVARIATES = "token id, length of the text in bytes, leading space"

VARIABLES = (
    Variable("covariates.heldout_r2", description=f"{HELD_OUT}; R^2 of -log(c/N) on {COVARIATES} alone; <= 1"),
    Variable("covariates.heldout_spearman", description=f"{HELD_OUT}; of {COVARIATES} alone; [-1, 1]"),
    Variable("covariates.joint_r2", description=f"{HELD_OUT}; R^2 of -log(c/N) on E beside {COVARIATES}; <= 1"),
    Variable("covariates.joint_spearman", description=f"{HELD_OUT}; of E beside {COVARIATES}; [-1, 1]"),
    Variable("covariates.r2_gain", description="joint_r2 - heldout_r2: what E knows beyond the covariates; <= 1"),
    Variable("covariates.spearman_gain", description="joint_spearman - heldout_spearman"),
)


class CovariateBaseline(Metric):
    """Held-out figures of token covariates alone, of the output embedding beside them, and the gain.

    The target is that of `FrequencyProbe`, y = -log(c_w / N), and so are the rows (`counts`, `min_count`, `exclude`,
    `mask`, `vocab_size`); the covariates are `token_covariates` of `token_texts`, decoded texts by id, no fewer than
    counts. `covariate_gain` is the same offline. Byte-pair ids follow merges, so covariates alone do well: a probe no
    better than they are has found what the tokenizer knew.

    Rows that are not finite are left out of both fits, so that the gain compares equals. Where a `FrequencyProbe` of
    the same counts and rows stands before it in the recorder's list, its sums are taken, and the cost is one skinny
    product, a second pass and the solutions; alone it makes the sums itself. No copy of the embedding is made; what
    is kept by row, 72 bytes each, is announced before the run. NaN as in `ProbeFit`.

    Raises ValueError for settings that do not fit together, and at the first record for counts that do not fit the
    embedding.
    """

    variables = VARIABLES

    def __init__(
        self,
        counts: Any,
        token_texts: Sequence[str],
        *,
        min_count: int = 1,
        exclude: Iterable[int] = (),
        mask: Bool[Tensor, "vocab"] | None = None,
        vocab_size: int | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        self.schedule = schedule
        self._selection = RowSelection.of(
            counts, min_count=min_count, exclude=exclude, mask=mask, vocab_size=vocab_size
        ).counted()
        ids = len(as_counts(self._selection.counts))
        if isinstance(token_texts, str) or len(token_texts) < ids:
            raise ValueError(
                f"there are {len(token_texts)} token texts and {ids} counts: give the decoded text of each id "
                'in a list, "" for ids without one.'
            )
        self._covariates = token_covariates(token_texts)
        self._prepared = CachedByShape(self._prepare)

    @torch.no_grad()
    def compute(self, state: State) -> Mapping[str, Tensor | float]:
        """Float64 values on the embedding's device."""
        embedding = state.output_embedding
        known = self._prepared.of(embedding)
        rows, dim = known.rows, embedding.shape[1]
        with exact_products(embedding.device.type):
            first = shared_probe_pass(state, known.key)
            if first is None:
                first = sum_rows(embedding, rows, dtype=product_dtype(embedding, rows=len(rows)))
                share_probe_sums(state, known.head_rows, first=first)
            own = _first_target(first.sums)
            columns = _scaled(known.columns, like=own)
            sums = _with_columns(embedding, rows, first=first, sums=own, columns=columns)
            joint = solve_sums(sums, exact=needs_exact(rows, dim=dim + columns.shape[1]), with_rank=False)
            last = _last_columns(sums, dim=dim)
            alone = solve_sums(last, exact=needs_exact(rows, dim=columns.shape[1]), with_rank=False)
            varies, finite = own.total().varies()[0], first.finite
            predicted = _predict(rows, columns, alone)
            values = _figures(rows, finite, found=alone, predicted=predicted, varies=varies, name="heldout")
            predicted = _predict_jointly(embedding, rows, first=first, columns=columns, found=joint)
            values |= _figures(rows, finite, found=joint, predicted=predicted, varies=varies, name="joint")
        for name in ("r2", "spearman"):
            values[f"covariates.{name}_gain"] = (
                values[f"covariates.joint_{name}"] - values[f"covariates.heldout_{name}"]
            )
        return dict(values)

    def takes_gram(self, step: int) -> bool:
        """Always: the joint fit is made of it."""
        return True

    def kept_bytes(self, state: State) -> Mapping[str, int]:
        """Ids, target and covariates of each row on the embedding's device, and the covariates of all on the host."""
        known = self._prepared.of(state.output_embedding)
        held = [known.rows.ids, known.rows.y, known.columns]
        held += [] if known.head_rows.ids is None else [known.head_rows.ids]
        return {"device": _bytes(held), "host": _bytes([self._covariates])}

    def _prepare(self, vocab: int, device: torch.device) -> _Known:
        chosen = self._selection.for_rows(vocab)
        assert chosen.target is not None
        rows = Rows.build(chosen.target[:, None], mask=chosen.mask, folds=FOLDS)
        columns = self._covariates[rows.ids]
        columns = columns - columns.mean(0)
        spread = columns.std(0, correction=0)
        columns = columns / spread.where(spread > 0, 1)
        head_rows = RowSet.of_mask(chosen.mask, device=device)
        return _Known(rows.to(device), columns.to(device), head_rows, chosen.key)


@dataclass(frozen=True)
class _Known:
    """What counts and texts decide: rows by fold, their covariates (mean 0, spread 1 or constant), and keys."""

    rows: Rows
    columns: Float64[Tensor, "row covariate"]
    head_rows: RowSet
    key: bytes


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _first_target(sums: ProbeSums) -> ProbeSums:
    return replace(sums, mean_y=sums.mean_y[:, :1], moment=sums.moment[:, :, :1], square=sums.square[:, :1])


def _scaled(columns: Tensor, *, like: ProbeSums) -> Float64[Tensor, "row covariate"]:
    """Covariates with the spread of the embedding's columns, so that no rank decision turns on their unit."""
    total = like.total()
    spread = (total.gram.diagonal().clamp_min(0) / total.weight).sqrt().mean()
    return columns * spread.where(spread > 0, 1)


def _with_columns(embedding: Tensor, rows: Rows, *, first: SumsPass, sums: ProbeSums, columns: Tensor) -> ProbeSums:
    """The sums of [E, columns] from those of E, a skinny product of both, and the columns' own sums in float64."""
    finite = first.finite.double()
    slices = rows.fold_slices()
    weighed = columns * finite[:, None]
    safe = sums.weight.where(sums.weight > 0, 1)[:, None]
    mean = torch.stack([weighed[fold].sum(0) for fold in slices]) / safe
    centred = torch.cat([columns[fold] - mean[f] for f, fold in enumerate(slices)]) * finite[:, None]
    y = torch.cat([rows.y[fold, :1] - sums.mean_y[f] for f, fold in enumerate(slices)])
    cross = _cross(embedding, rows, first=first, columns=centred)
    inner = torch.stack([centred[fold].T @ centred[fold] for fold in slices])
    return replace(
        sums,
        mean_x=torch.cat([sums.mean_x, mean], 1),
        gram=torch.cat([torch.cat([sums.gram, cross], 2), torch.cat([cross.mT, inner], 2)], 1),
        moment=torch.cat([sums.moment, torch.stack([centred[fold].T @ y[fold] for fold in slices])], 1),
    )


def _cross(embedding: Tensor, rows: Rows, *, first: SumsPass, columns: Tensor) -> Float64[Tensor, "fold dim covariate"]:
    """E'C by fold; columns are centred in each fold and 0 where a row is not finite, so any shift of E is exact."""
    dtype, dim = first.shift.dtype, embedding.shape[1]
    out = torch.zeros(FOLDS, columns.shape[1], dim, dtype=torch.float64, device=embedding.device)
    narrow = columns.T.to(dtype).contiguous()
    for fold, where, x in fold_blocks(embedding, rows, first.shift):
        if not first.keeps_all:
            zero_rows(x, ~first.finite[where])
        out[fold] += narrow[:, where] @ x
    return out.mT


def _last_columns(sums: ProbeSums, *, dim: int) -> ProbeSums:
    """The sums of what stands behind the embedding's `dim` columns; they were taken in float64."""
    return replace(
        sums,
        mean_x=sums.mean_x[:, dim:],
        gram=sums.gram[:, dim:, dim:],
        moment=sums.moment[:, dim:],
        eps=torch.finfo(torch.float64).eps,
    )


def _predict(rows: Rows, columns: Tensor, found: Coefficients) -> Float64[Tensor, "row"]:
    """Each row's target from columns by the coefficients that were fitted without its fold."""
    slopes = found.fold_slope[:, -columns.shape[1] :]
    parts = [columns[fold] @ slopes[f] + found.fold_intercept[f] for f, fold in enumerate(rows.fold_slices())]
    return torch.cat(parts)[:, 0]


def _predict_jointly(
    embedding: Tensor, rows: Rows, *, first: SumsPass, columns: Tensor, found: Coefficients
) -> Float64[Tensor, "row"]:
    """The same from the embedding and columns, in explicit products: rows that are not finite count as the shift."""
    by_fold = found.fold_slope[:, : embedding.shape[1]]
    projected = project_rows(embedding, rows, first=first, by_fold=by_fold)
    own = projected.values[:, 0] + projected.shift @ by_fold
    return own.flatten().index_select(0, rows.line_places) + _predict(rows, columns, found)


def _figures(
    rows: Rows,
    finite: Bool[Tensor, "row"],
    *,
    found: Coefficients,
    predicted: Float[Tensor, "row"],
    varies: Bool[Tensor, ""],
    name: str,
) -> dict[str, Tensor]:
    """Held-out R^2, all rows pooled, and Spearman's correlation, averaged over folds; over rows that are finite."""
    y, predicted = rows.y[:, 0], predicted.masked_fill(~finite, 0)
    means = torch.cat([found.trained_mean[f].expand(size) for f, size in enumerate(rows.fold_sizes)])
    error, spread = ((y - other).square() @ finite.double() for other in (predicted, means))
    r2 = (1 - error / spread).where(varies, torch.nan)
    ranks = spearman_by_fold(rows, predicted[:, None], finite=finite)[0]
    return {f"covariates.{name}_r2": r2, f"covariates.{name}_spearman": ranks.nanmean()}
