"""A matrix report as text: every figure beside the null, baseline or reference that it stands against."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from io import StringIO
from textwrap import fill

from rich.table import Column, Table

from trainhooks.core.printable import cell, draw, plain_console, sayer, shown
from trainhooks.probe import LEAST_ROTATIONS, Sparsity
from trainhooks.probe_report.figures import Figures, MatrixFigures

WIDTH = 118
LEVEL = 0.05
FIGURES = ("r2", "adjusted_r2", "heldout_r2", "heldout_mse", "heldout_pearson", "heldout_spearman")
CONCENTRATION = {
    "gini": "Gini of saliency",
    "hoyer": "Hoyer of saliency",
    "participation_ratio": "participation ratio",
    "unique_participation_ratio": "participation ratio, unique saliency",
    "dimensions": "dimensions for 90% of R^2, refitted",
}
CHANNELS = {
    "norm_bias": ("E.beta, rank correlation with log frequency", "0; inside E"),
    "mean_hidden": ("E.mu, rank correlation", "0; inside E"),
    "rest": ("E.(mu - beta), rank correlation", "0; inside E"),
    "head_bias": ("head bias b, rank correlation", "0; outside E"),
    "embedding_r2": ("R^2[E], held out", "0, the training mean"),
    "head_bias_r2": ("R^2[b], held out", "R^2[E]"),
    "joint_r2": ("R^2[E, b], held out", "R^2[E]: what b adds"),
}


def render_report(report: MatrixFigures) -> str:
    """The whole report, at most 118 columns wide."""
    out = plain_console(file=StringIO(), width=WIDTH, color_system=None)
    tell = sayer(out)
    for line in _head(report):
        tell(shown(line))
    for title, table, remarks in _sections(report):
        tell(f"\n{title}")
        draw(out, table)
        for remark in remarks:
            tell(_paragraph(remark, first="  "))
    tell("\nReading")
    for line in (*_reading(report), *report.notes):
        tell(_paragraph(line, first="- "))
    assert isinstance(out.file, StringIO)
    return "\n".join(line.rstrip() for line in out.file.getvalue().splitlines()) + "\n"


def number(value: float | None, *, digits: int = 3) -> str:
    """A figure with fixed digits, no minus before a zero; "-" where it is not defined."""
    return "-" if value is None or math.isnan(value) else f"{value:z.{digits}f}"


def spread(values: Iterable[float]) -> str:
    """Mean and range of the values that are defined, "-" where none is."""
    kept = [value for value in values if not math.isnan(value)]
    if not kept:
        return "-"
    return f"{number(math.fsum(kept) / len(kept))} ({number(min(kept))} to {number(max(kept))})"


def _paragraph(text: str, *, first: str) -> str:
    """Wrapped where the report ends, its later lines as far in as the first."""
    return fill(shown(text), WIDTH, initial_indent=first, subsequent_indent=" " * len(first), break_on_hyphens=False)


def _head(report: MatrixFigures) -> list[str]:
    where = "".join(
        f", {what} {value}" for what, value in (("step", report.step), ("tensor", report.key)) if value is not None
    )
    left = f"counted {report.min_count} or more, {len(report.excluded)} ids excluded"
    if report.vocab_size is not None:
        left += f", ids below {report.vocab_size}"
    return [
        f"Log-linear probe of token frequency: {report.name}{where}",
        f"rows    {report.rows} of {report.vocab} in the fit ({left}); {report.dim} dimensions, rank {report.rank}",
        f"target  -log(count / N) in nats, {report.counts_from}, N = {report.tokens}",
        f"        variance {number(report.variance)} nat^2; {_ceiling(report)}",
    ]


def _ceiling(report: MatrixFigures) -> str:
    if math.isnan(report.noise_ceiling):
        return f"no ceiling from counting noise: {report.no_ceiling or 'it is not defined here'}"
    return f"true rates would reach R^2 {number(report.noise_ceiling)}, counting noise the rest, if counts are Poisson"


def _sections(report: MatrixFigures) -> Iterable[tuple[str, Table, Sequence[str]]]:
    yield "What predicts a token's frequency", _predictors(report), _predictor_remarks(report)
    if report.never_labels is not None:
        yield "Rows that were never a label (a control: the softmax gradient moves them together)", _never(report), ()
    if report.channels is not None:
        yield (
            "Channels of frequency into the logits",
            _channels(report),
            ("Only the head's bias is outside the probe.",),
        )
    if report.sparsity is not None and report.shows_frequency:  # of a slope that shows nothing there is nothing to say
        yield (
            "Do few dimensions carry the slope?",
            _sparsity(report.sparsity),
            _sparsity_remarks(report, report.sparsity),
        )
    if report.drift:
        yield "The slope against other steps", _drift(report), ()
    if report.recorded:
        yield "Recorded by the run at this step", _recorded(report), ()


def _table(*names: str, wide: int = 1) -> Table:
    """A table without lines whose first `wide` columns are text and the rest numbers."""
    columns = [Column(name, justify="left" if i < wide else "right", no_wrap=i < wide) for i, name in enumerate(names)]
    return Table(*columns, box=None, pad_edge=False, padding=(0, 2, 0, 0))


def _predictors(report: MatrixFigures) -> Table:
    table = _table("", "", "R^2", "adjusted", "held-out R^2", "MSE, nat^2", "Pearson", "Spearman", wide=2)
    draws = report.random_directions
    rows = [
        ("the embedding's rows", "probe", report.probe),
        ("the rows, target permuted over them", "null", report.permuted),
        (f"one random direction E.u, mean of {len(draws)}", "reference", _mean(draws)),
        ("row norm alone", "baseline", report.row_norm),
        ("row norm of E diag(gamma)", "baseline", report.folded_row_norm),
        ("id, bytes, leading space", "baseline", report.covariates),
        ("the rows beside those three", "both", report.joint),
        (f"log((c + 1/2)/(N + V/2)), {report.smoothed_rows} rows", "variant", report.smoothed),
    ]
    for what, role, figures in rows:
        if figures is not None:
            table.add_row(what, role, *(number(getattr(figures, name)) for name in FIGURES))
    return table


def _mean(draws: Sequence[Figures]) -> Figures:
    def mean(name: str) -> float:
        kept = [getattr(one, name) for one in draws if not math.isnan(getattr(one, name))]
        return math.fsum(kept) / len(kept) if kept else math.nan

    return Figures(**{name: mean(name) for name in FIGURES})


def _predictor_remarks(report: MatrixFigures) -> list[str]:
    draws = report.random_directions
    sizes = ", ".join(str(fold.rows) for fold in report.folds)
    return [
        f"In-sample R^2 stands against k/(n - 1) = {number(report.null_r2)}, what noise reaches; adjusted R^2 and "
        "correlations against 0; held-out R^2 against 0, the training folds' mean; MSE against the variance, "
        f"{number(report.variance)}.",
        f"Held out: {len(report.folds)} folds by id mod {len(report.folds)} ({sizes} rows). Mean and range over folds: "
        f"R^2 {spread(f.heldout_r2 for f in report.folds)}, "
        f"Spearman {spread(f.heldout_spearman for f in report.folds)}. Random directions: R^2 "
        f"{spread(f.heldout_r2 for f in draws)}, Spearman {spread(f.heldout_spearman for f in draws)}.",
    ]


def _never(report: MatrixFigures) -> Table:
    never = report.never_labels
    assert never is not None
    table = _table("", "value", "stands against", wide=1)
    table.columns[2].justify = "left"
    table.add_row(
        f"mean prediction for {never.rows} rows, nats", number(never.prediction), f"{number(report.mean)}, mean of y"
    )
    table.add_row("mean pairwise cosine", number(never.cosine), "0, unrelated rows")
    return table


def _channels(report: MatrixFigures) -> Table:
    table = _table("", "value", "stands against")
    table.columns[2].justify = "left"
    for name, (what, against) in CHANNELS.items():
        value = getattr(report.channels, name)
        if value is not None:
            table.add_row(what, number(value), against)
    return table


def _sparsity(sparsity: Sparsity) -> Table:
    draws = len(sparsity.rotated)
    table = _table("", "own axes", f"{draws} Haar rotations, mean (range)", "against them", "random order")
    for name, what in CONCENTRATION.items():
        rotated = [getattr(one, name) for one in sparsity.rotated]
        order = spread(sparsity.random_order) if name == "dimensions" else ""
        own = getattr(sparsity.as_is, name)
        table.add_row(what, number(own), spread(rotated), place(own, rotated), order)
    return table


def place(own: float, others: Sequence[float]) -> str:
    """Where a value lies against reference draws: above all, below all or within them; "-" where undefined."""
    kept = [value for value in others if not math.isnan(value)]
    if math.isnan(own) or not kept:
        return "-"
    if own > max(kept):
        return f"above all {len(kept)}"
    return f"below all {len(kept)}" if own < min(kept) else "within"


def _sparsity_remarks(report: MatrixFigures, sparsity: Sparsity) -> list[str]:
    draws, p = len(sparsity.rotated), sparsity.p
    if draws < LEAST_ROTATIONS:
        remarks = [f"{draws} rotations are too few to say whether the own axes are privileged: draw {LEAST_ROTATIONS}."]
    elif p <= LEVEL:
        most = CONCENTRATION[sparsity.most]
        remarks = [f"Sparser than rotated axes: p = {number(p)} for the five figures together, most by {most}."]
    else:
        remarks = [f"No sparsity is shown: p = {number(p)} for the five figures together, against rotated axes."]
    if report.rank < report.dim:
        remarks.append(f"Rank {report.rank} is below the width: this is the slope of least norm, one of many.")
    return remarks


def _drift(report: MatrixFigures) -> Table:
    table = _table("", "cosine of slopes", "permuted target's", "R^2 of this slope there", "its own held-out R^2")
    for one in report.drift:
        table.add_row(
            cell(one.other),
            *(number(v) for v in (one.slope_cosine, one.permuted_slope_cosine, one.transfer_r2, one.own_heldout_r2)),
        )
    return table


def _recorded(report: MatrixFigures) -> Table:
    table = _table("", "value", "convention")
    table.columns[2].justify = "left"
    for name, one in report.recorded.items():
        table.add_row(cell(name), f"{one.value:.4g}", cell(one.description))
    return table


def _reading(report: MatrixFigures) -> list[str]:
    """What the figures allow to be said, and no more."""
    r2, null, norm = report.probe.heldout_r2, report.permuted.heldout_r2, report.row_norm.heldout_r2
    closing = "One matrix says nothing about when frequency came to it, nor about what it causes."
    if math.isnan(r2):
        return ["No probe can be judged here: the target is constant, or all rows are in one fold.", closing]
    if not report.shows_frequency:
        first = f"No frequency is shown: held-out R^2 {number(r2)} is not above the mean or the permuted target."
        return [first, closing]
    lines = [
        f"On tokens held out, the rows explain {number(r2)} of the variance of log frequency (permuted target "
        f"{number(null)}); the row norm alone explains {number(norm)}."
    ]
    if not math.isnan(norm) and norm >= r2:
        lines.append("The row norm alone does as well: beyond it, the probe shows nothing here.")
    if report.covariates is not None:
        lines.append(
            f"Id, bytes and leading space alone explain {number(report.covariates.heldout_r2)}; the rows add "
            f"{number(report.covariate_gain)} to that."
        )
    return [*lines, closing]
