"""The frequency probe of one matrix with all that it stands against: nulls, baselines, controls, sparsity, drift."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from trainhooks.probe import (
    LEAST_ROTATIONS,
    ProbeFit,
    Sparsity,
    channels,
    covariate_gain,
    fit_probe,
    never_label_control,
    noise_ceiling,
    norm_folded,
    permutation,
    probe_sparsity,
    probe_sums,
    row_norm_probe,
    slope_cosine,
    small_share,
    smoothed_frequency_target,
    spearman,
    token_covariates,
    transfer_r2,
)
from trainhooks.probe.ceiling import MOST_SMALL
from trainhooks.probe.row_selection import RowSelection, rows_of_matrix
from trainhooks.probe.scored import squeeze
from trainhooks.probe_report.figures import Drift, Figures, FoldFigures, NeverLabelFigures, RankFigures, shows_frequency
from trainhooks.probe_report.report import MatrixReport

DIRECTIONS = 20
SHOWN_IDS = 8


@dataclass(frozen=True)
class _Task:
    """One matrix and its target: `finite` rows, `mask` of the fit, `y` [vocab] with NaN outside, `permuted` y.

    `chosen` has a count for each row; the rows from `vocab_size` on are padding, None where there is none.
    """

    embedding: Tensor
    chosen: RowSelection
    vocab_size: int | None
    counts: Tensor
    mask: Tensor
    finite: Tensor
    y: Tensor
    permuted: Tensor


@torch.no_grad()
def report_matrix(
    embedding: Float[Tensor, "vocab dim"],
    *,
    counts: Any,
    vocab_size: int | None = None,
    min_count: int = 1,
    exclude: Iterable[int] = (),
    token_texts: Sequence[str] | None = None,
    head_bias: Float[Tensor, "vocab"] | None = None,
    norm_bias: Float[Tensor, "dim"] | None = None,
    norm_scale: Float[Tensor, "dim"] | None = None,
    mean_hidden: Float[Tensor, "dim"] | None = None,
    others: Iterable[tuple[str, Tensor]] = (),
    draws: int = LEAST_ROTATIONS,
    seed: int = 0,
) -> MatrixReport:
    """Fit y = -log(c/N) on the rows E [vocab, dim] and everything that NUMBERS puts beside it, offline.

    `counts`, `vocab_size`, `min_count`, `exclude` as `token_mask`, or a `RowSelection` as `counts`. `token_texts` of
    the ids from 0 give the covariate baseline; `head_bias` b [vocab], `norm_bias` beta and `mean_hidden` mu [dim] the
    channels; `norm_scale` gamma [dim] the norm-folded row norm. `others` are (label, matrix) of other steps, taken one
    at a time, for the drift. `draws` rotations and random orders stand beside the sparsity; 0 leaves it out. Random
    draws come from CPU generators with `seed`.

    Degenerate cases give NaN as `ProbeFit` says. Memory: up to five copies of a float32 matrix beside it, for
    covariates and biases are fitted as further columns.

    Raises ValueError for counts or texts that do not fit, rows in the fit that are not finite (ids named), an empty
    fit.
    """
    task = _task(embedding, counts, vocab_size=vocab_size, min_count=min_count, exclude=exclude)
    per_dim = {"norm_bias": norm_bias, "norm_scale": norm_scale, "mean_hidden": mean_hidden}
    _check_parts(task, {"head_bias": head_bias, **per_dim})
    covariates = _covariates(token_texts, task)
    both = fit_probe(task.embedding, torch.stack([task.y, task.permuted], 1), mask=task.mask)
    fit = squeeze(both)
    return MatrixReport(
        **_described(task),
        **_baselines(task, covariates=covariates, norm_scale=norm_scale),
        rows=int(fit.rows),
        rank=int(fit.rank),
        variance=float(fit.variance),
        null_r2=float(fit.null_r2),
        probe=Figures.of(fit),
        folds=_fold_figures(task, fit),
        permuted=Figures.of(squeeze(both, target=1)),
        random_directions=_random_directions(task, seed=seed),
        never_labels=_never_labels(task, fit),
        channels=_channels(task, head_bias=head_bias, norm_bias=norm_bias, mean_hidden=mean_hidden),
        sparsity=_sparsity(task, both, draws=draws, seed=seed),
        drift=tuple(_drift(task, both, other=other, label=label) for label, other in others),
        slope=tuple(fit.slope.tolist()),
        intercept=float(fit.intercept),
    )


def _described(task: _Task) -> dict[str, Any]:
    """What was fitted: the shape, the rows and their target."""
    return {
        "vocab": len(task.embedding),
        "dim": task.embedding.shape[1],
        "vocab_size": task.vocab_size,
        "min_count": task.chosen.min_count,
        "excluded": tuple(sorted(set(task.chosen.exclude))),
        "tokens": int(task.counts.sum()),
        "mean": float(task.y[task.mask].mean()),
        "noise_ceiling": noise_ceiling(task.counts, mask=task.mask),
        "no_ceiling": _no_ceiling(task),
    }


def _baselines(task: _Task, *, covariates: Tensor | None, norm_scale: Tensor | None) -> dict[str, Any]:
    """What less than the matrix knows of frequency, and the sensitivity to the target's form."""
    gain = None if covariates is None else covariate_gain(task.embedding, covariates, task.y, mask=task.mask)
    folded = None if norm_scale is None else norm_folded(task.embedding, norm_scale)
    smoothed, smoothed_rows = _smoothed(task)
    return {
        "row_norm": Figures.of(row_norm_probe(task.embedding, task.y, mask=task.mask)),
        "folded_row_norm": None if folded is None else Figures.of(row_norm_probe(folded, task.y, mask=task.mask)),
        "covariates": None if gain is None else Figures.of(gain.covariates),
        "joint": None if gain is None else Figures.of(gain.joint),
        "smoothed": smoothed,
        "smoothed_rows": smoothed_rows,
    }


def _task(embedding: Tensor, counts: Any, *, vocab_size: int | None, min_count: int, exclude: Iterable[int]) -> _Task:
    """The checked inputs of a report."""
    if embedding.ndim != 2 or not embedding.is_floating_point():
        raise ValueError(
            f"the matrix has shape {tuple(embedding.shape)} and type {embedding.dtype}; needed is a floating matrix "
            "[vocab, dim] with a row for each token."
        )
    vocab = len(embedding)
    chosen = rows_of_matrix(counts, vocab=vocab, min_count=min_count, exclude=exclude, vocab_size=vocab_size)
    found = chosen.for_rows(vocab)
    y, mask = found.target, found.mask
    assert y is not None
    assert found.counts is not None
    embedding = embedding.detach().cpu()
    embedding = embedding if embedding.dtype == torch.float64 else embedding.float()
    finite = embedding.isfinite().all(1)
    bad = (mask & ~finite).nonzero().flatten().tolist()
    if bad:
        more = f" ... ({len(bad)} in all)" if len(bad) > SHOWN_IDS else ""
        raise ValueError(
            f"rows {bad[:SHOWN_IDS]}{more} of the matrix hold NaN or inf: look at the run that wrote them, or leave "
            "these ids out (exclude=, --exclude)."
        )
    ids = mask.nonzero().flatten()
    permuted = y.clone()
    permuted[ids] = y[ids[permutation(ids)]]
    return _Task(
        embedding=embedding,
        chosen=chosen,
        vocab_size=counts.vocab_size if isinstance(counts, RowSelection) else vocab_size,
        counts=found.counts,
        mask=mask,
        finite=finite,
        y=y,
        permuted=permuted,
    )


def _check_parts(task: _Task, parts: Mapping[str, Tensor | None]) -> None:
    for name, part in parts.items():
        size = len(task.mask) if name == "head_bias" else task.embedding.shape[1]
        if part is not None and part.shape != (size,):
            raise ValueError(f"{name} has shape {tuple(part.shape)}; needed is ({size},) for this matrix.")


def _fold_figures(task: _Task, fit: ProbeFit) -> tuple[FoldFigures, ...]:
    """The probe on each fold's rows, by explicit predictions from the slope fitted without them."""
    ids = task.mask.nonzero().flatten()
    folds = len(fit.fold_slope)
    undefined = bool(fit.heldout_r2.isnan())
    found = []
    for fold in range(folds):
        held = ids[ids % folds == fold]
        y, trained = task.y[held], task.y[ids[ids % folds != fold]]
        if undefined or len(held) < 2 or not len(trained):
            found.append(FoldFigures(rows=len(held), heldout_r2=torch.nan, heldout_spearman=torch.nan))
            continue
        predicted = task.embedding[held].double() @ fit.fold_slope[fold] + fit.fold_intercept[fold]
        r2 = 1 - (y - predicted).square().sum() / (y - trained.mean()).square().sum()
        found.append(FoldFigures(len(held), float(r2), float(spearman(y, predicted))))
    return tuple(found)


def _random_directions(task: _Task, *, seed: int) -> tuple[Figures, ...]:
    """One-feature probes on E.u for Gaussian directions u: what any direction of this matrix carries."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(task.embedding.shape[1], DIRECTIONS, dtype=torch.float64, generator=generator)
    features = torch.where(task.finite[:, None], task.embedding @ u.to(task.embedding.dtype), 0).double()
    return tuple(Figures.of(fit_probe(feature[:, None].contiguous(), task.y, mask=task.mask)) for feature in features.T)


def _smoothed(task: _Task) -> tuple[Figures, int]:
    """The probe of log((c + 1/2)/(N + V/2)) over all finite rows of the vocabulary, counted or not."""
    keep = task.finite.clone()
    keep[list(task.chosen.exclude)] = False
    values = task.counts
    if task.vocab_size is not None:
        keep[task.vocab_size :] = False
        values = values[: task.vocab_size]
    y = torch.full_like(task.y, torch.nan)
    y[: len(values)] = smoothed_frequency_target(values)
    fit = fit_probe(task.embedding, y, mask=keep)
    return Figures.of(fit), int(fit.rows)


def _covariates(texts: Sequence[str] | None, task: _Task) -> Tensor | None:
    if texts is None:
        return None
    rows, last = len(task.counts), int(task.mask.nonzero()[-1])
    if len(texts) > rows or len(texts) <= last:
        what = f"the matrix has {rows} rows" if len(texts) > rows else f"id {last} is counted"
        raise ValueError(f"the tokenizer has {len(texts)} entries, but {what}: pass the tokenizer of this model.")
    return token_covariates([*texts, *[""] * (rows - len(texts))])


def _never_labels(task: _Task, fit: ProbeFit) -> NeverLabelFigures | None:
    never = (task.counts == 0) & task.finite
    if not bool(never.any()):
        return None
    mean = task.embedding.new_zeros(task.embedding.shape[1], dtype=torch.float64)
    for block in task.mask.nonzero().flatten().split(8192):
        mean += task.embedding[block].sum(0, dtype=torch.float64)
    control = never_label_control(
        task.embedding, never, slope=fit.slope, intercept=fit.intercept, mean_row=mean / int(task.mask.sum())
    )
    return NeverLabelFigures(int(never.sum()), float(control.prediction), float(control.cosine))


def _channels(
    task: _Task, *, head_bias: Tensor | None, norm_bias: Tensor | None, mean_hidden: Tensor | None
) -> RankFigures | None:
    if head_bias is None and norm_bias is None and mean_hidden is None:
        return None
    found = channels(
        task.embedding,
        task.y,
        mask=task.mask,
        norm_bias=_float(norm_bias),
        mean_hidden=_float(mean_hidden),
        head_bias=_float(head_bias),
    )
    rest = {name: None if value is None else float(value) for name, value in vars(found).items()}
    del rest["embedding_r2"]
    return RankFigures(embedding_r2=float(found.embedding_r2), **rest)


def _no_ceiling(task: _Task) -> str:
    """Why there is no noise ceiling, "" where there is one."""
    if (share := small_share(task.counts, mask=task.mask)) > MOST_SMALL:
        return f"{share:.0%} of these tokens were counted once or twice, too seldom to tell noise from rates"
    return "all counts are equal" if bool((task.counts[task.mask] == task.counts[task.mask][0]).all()) else ""


def _sparsity(task: _Task, both: ProbeFit, *, draws: int, seed: int) -> Sparsity | None:
    """None where it is not asked for, or the slope predicts nothing whose dimensions could be counted."""
    if not draws or not shows_frequency(*(float(r2) for r2 in both.heldout_r2)):
        return None
    return probe_sparsity(probe_sums(task.embedding, task.y, mask=task.mask), draws=draws, seed=seed)


def _float(part: Tensor | None) -> Tensor | None:
    return None if part is None else part.detach().cpu().double()


def _drift(task: _Task, both: ProbeFit, *, other: Tensor, label: str) -> Drift:
    """The probe of `task` against that of another matrix on the same rows; NaN where the other is not finite."""
    if other.shape != task.embedding.shape:
        raise ValueError(f"{label} has shape {tuple(other.shape)}; needed is {tuple(task.embedding.shape)} as here.")
    if not bool(other[task.mask].isfinite().all()):
        return Drift(label, *[torch.nan] * 4)
    targets = torch.stack([task.y, task.permuted], 1)
    theirs = fit_probe(other, targets, mask=task.mask)
    cosine, null = slope_cosine(both.slope, theirs.slope).tolist()
    transfer = transfer_r2(squeeze(both), other, task.y, mask=task.mask)
    return Drift(label, cosine, null, float(transfer), float(theirs.heldout_r2[0]))
