"""The methods paragraph, with definitions and citations, to be copied into a paper and cut."""

from __future__ import annotations

import math
from collections.abc import Sequence

from trainhooks.core.html import text
from trainhooks.run_figures import RunNumbers

PROBE = (
    "Token frequency in the output embedding E (V x d) was measured by a log-linear probe, the least squares fit with"
    " intercept of y = -log(c/N) (c a token's count, N the corpus size; natural logarithms) on the rows of E whose "
    "tokens were counted [1]. Figures are held out: five folds by token id mod 5, Spearman's correlation taken in "
    "each fold and averaged. Beside it stand the row norm as the only feature (baseline) and the same fit of y "
    "permuted over tokens (null)."
)
CONVERGENCE = (
    "Convergence is |theta(t) - theta(T)| / |theta(T)| by parameter group, T the last record; in a live run from sign"
    " sketches{sizes} [2], from checkpoints exact. It depends on the"
    " run's length; a random walk between the same ends is drawn beside it."
)
LEAD = (
    "The change D(t) = E(t) - E(0) of the centred rows is split into b(t) = D(t)'y along the target and the rest. The"
    " progress of each is its projection on its own final value; the onset at q is where its isotonic regression "
    "passes q; the lead is the onset of the rest over that of frequency. It is compared with labellings that load on "
    "the change as y does but mean nothing (sign flips, block rotations, random directions of the change; 99 draws "
    "each); p is the largest over these nulls. Intervals are over bootstrap samples of the tokens, and over seeds "
    "t-intervals of the logarithm; p-values of several runs are combined by twice their mean [3]."
)
SPARSITY = (
    "Saliency of dimension i is |A_i| sd(E_i), A the slope; Gini index [4] and participation ratio of it are shown "
    "beside 20 Haar rotations of the axes [5]. Effective rank is exp of the entropy of the singular values' shares "
    "[6]."
)
CITATIONS = (
    "Cho et al. 2025, arXiv 2406.01468.",
    "Charikar, Chen and Farach-Colton 2002, ICALP.",
    "Vovk and Wang 2020, Biometrika 107, doi:10.1093/biomet/asaa027.",
    "Hurley and Rickard 2009, arXiv 0811.4706.",
    "Mezzadri 2007, arXiv math-ph/0609050.",
    "Roy and Vetterli 2007, EUSIPCO.",
)


def methods(runs: Sequence[RunNumbers], *, version: str) -> str:
    """Definitions, then what was measured here, then the references."""
    taken = "; ".join(
        f"{run.label}: {len(run.steps):,} records to step {run.steps[-1]:,}, V = {run.vocab:,}, d = {run.dim}"
        + (f", {len(run.states)} matrices used for what is drawn of matrices" if run.states else "")
        for run in runs
    )
    paragraphs = "".join(
        f"<p>{text(one)}</p>" for one in (PROBE, CONVERGENCE.format(sizes=_sizes(runs)), LEAD, SPARSITY)
    )
    references = "".join(f"<li>{text(one)}</li>" for one in CITATIONS)
    return (
        f"{paragraphs}<p>{text(f'Measured with trainhooks {version}. {taken}.')}</p>"
        f"<h3>References</h3><ol>{references}</ol>"
    )


def _sizes(runs: Sequence[RunNumbers]) -> str:
    """How large the sketches are and how exact that makes them; nothing where no run has any."""
    kept = sorted({run.facts["sketch_size"] for run in runs} - {0})
    told = " or ".join(
        f"{size:,} numbers a group (relative standard error {1 / math.sqrt(2 * size):.1%})" for size in kept
    )
    return f" of {told}" if told else ""
