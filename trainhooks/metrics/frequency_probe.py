"""The live frequency probe: does the output embedding hold the corpus token frequency yet?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from trainhooks.core.schedule import Schedule
from trainhooks.core.variable import Variable
from trainhooks.metrics.base import Metric, State
from trainhooks.metrics.cached_by_shape import CachedByShape
from trainhooks.metrics.fold_outputs import FOLDS, HELD_OUT, fold_figures, fold_variables
from trainhooks.metrics.shared_sums import gram_wanted, share_head_mean, share_probe_pass, share_probe_sums
from trainhooks.numerics.hashing import permutation
from trainhooks.numerics.products import exact_products
from trainhooks.numerics.row_sums import RowSet
from trainhooks.probe.baselines import RowNormFit, UnseenSums, fit_row_norms, sum_unseen
from trainhooks.probe.ceiling import noise_ceiling
from trainhooks.probe.drift import cosine_of_products
from trainhooks.probe.fit import needs_exact, product_dtype
from trainhooks.probe.row_selection import RowSelection
from trainhooks.probe.rows import LINE_ELEMENTS, Rows, sum_rows
from trainhooks.probe.scored import ProbeFit, Scored, score, squeeze
from trainhooks.probe.solve import solve_with_factor
from trainhooks.probe.target import as_counts
from trainhooks.probe.warm_slopes import WarmStart, refine, warm_bytes

PERMUTED = "the target permuted over tokens in the order of splitmix64(id)"
NORM = "one feature, the norm of the centred row"

_PART = " probe."  # no variable's name: parts travel from a device with a record's values

VARIABLES = (
    Variable("probe.heldout_spearman", description=f"{HELD_OUT}; average ranks, per fold, averaged; [-1, 1]"),
    Variable("probe.heldout_pearson", description=f"{HELD_OUT}; per fold, averaged; [-1, 1]"),
    Variable("probe.heldout_r2", description=f"{HELD_OUT}; against the training folds' mean, rows pooled; <= 1"),
    Variable("probe.heldout_mse", unit="nat^2", description=f"{HELD_OUT}; mean squared error, rows pooled"),
    Variable("probe.r2", description="in-sample R^2 of -log(c/N) on the rows of the output embedding, [0, 1]"),
    Variable("probe.adjusted_r2", description="1 - (1 - R^2)(n - 1)/(n - 1 - k); NaN where n <= k + 1"),
    Variable("probe.null_r2", description="in-sample R^2 that pure noise reaches on average, k/(n - 1)"),
    Variable("probe.rank", description="rank k of the centred rows"),
    Variable(
        "probe.pivot",
        description="least share of a column's variance that the columns before it leave unexplained, (0, 1]; below "
        "1e-3 float32 sums lose digits: refit the snapshot with fit_probe",
    ),
    Variable("probe.permuted_heldout_spearman", description=f"{HELD_OUT}; {PERMUTED}: a null"),
    Variable("probe.permuted_heldout_r2", description=f"{HELD_OUT}; {PERMUTED}: a null"),
    Variable("probe.row_norm_spearman", description=f"{HELD_OUT}; baseline of {NORM}"),
    Variable("probe.row_norm_r2", description=f"{HELD_OUT}; baseline of {NORM}"),
    Variable("probe.drift", description="cos(A_t, A_s) with s the record of the probe before; NaN at the first"),
    Variable("probe.excluded_rows", description="rows of the mask left out because they hold NaN or inf"),
    Variable("probe.slope", ("dim",), unit="nat", description="slope A of -log(c/N) = A . E_w + B, all rows"),
    Variable("probe.intercept", unit="nat", description="intercept B, all rows"),
    *fold_variables("probe"),
)
NEVER_LABEL_VARIABLES = (
    Variable("probe.never_label_prediction", unit="nat", description="mean A . E_w + B over never-label rows"),
    Variable("probe.never_label_cosine", description="mean pairwise cosine of centred never-label rows: a control"),
)


class FrequencyProbe(Metric):
    """The log-linear probe of y = -log(c_w / N) on the output embedding, with its null and baselines, at every record.

    `counts` are the corpus counts; `min_count`, `exclude`, `mask` and `vocab_size` say which rows enter, as in
    `token_mask`. Where rows of the embedding are more than counts, `vocab_size` must say that the rest is padding.
    Rows with a zero count serve as the never-label control.

    A row that is not finite is left out and counted, it stops nothing. All targets share one pass of float32
    block products with float64 sums; nothing waits for the device unless rows are fewer than 1.25 dim, where the
    least-norm solution needs an eigendecomposition. Figures have NaN where `ProbeFit` says so. A norm-folded head
    E diag(gamma) has the same figures (`norm_folded`), so it has no variables here. Costs about two products
    E'E and, at 50304 x 768, 0.8 copies of E in memory; the device must know float64. On a CPU, from 192 columns on, a
    record whose Gram no other metric takes goes on from the slopes of the record before (`probe.warm_slopes`): 0.2 to
    0.7 products of a wide head, figures within 1e-5 of the others (slopes 1e-4; intercepts, and heads whose columns
    nearly depend on each other, twice that), rank and pivot those of the last Gram.

    Source: Cho et al. 2025, arXiv 2406.01468. Raises ValueError for counts that do not fit the embedding, at the
    first record.
    """

    def __init__(
        self,
        counts: Any,
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
        self._counts = as_counts(self._selection.counts)
        never = bool((self._counts == 0).any()) or self._selection.vocab_size is not None
        self.variables = VARIABLES + (NEVER_LABEL_VARIABLES if never else ())
        self._never = never
        self._prepared = CachedByShape(self._prepare)
        self._slopes: list[tuple[int, Tensor]] = []
        self._starts: list[tuple[int, WarmStart]] = []
        self._gram_before = False
        self._failed = self._resting = 0

    @property
    def noise_ceiling(self) -> float:
        """The R^2 that counting noise in `counts` leaves in reach, see `trainhooks.probe.noise_ceiling`."""
        return noise_ceiling(self._counts, mask=self._selection.mask)

    @torch.no_grad()
    def compute(self, state: State) -> Mapping[str, Tensor | float]:
        """All figures of one record, as tensors on the embedding's device."""
        return self._finish(self._measure(state))

    @torch.no_grad()
    def enqueue(self, state: State) -> Mapping[str, Tensor | float]:
        """On a device what the figures are made of: a hundred launches less, and a few hundred numbers more."""
        return self.compute(state) if state.output_embedding.device.type == "cpu" else self.parts(state)

    def parts(self, state: State) -> dict[str, Tensor | float]:
        """What `conclude` makes the figures of."""
        return {_PART + name: value for name, value in self._measure(state).items()}

    def conclude(self, values: dict[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """The figures of parts that have travelled."""
        parts = {name: torch.from_numpy(values.pop(name)) for name in list(values) if name.startswith(_PART)}
        if not parts:
            return values
        found = self._finish({name.removeprefix(_PART): value for name, value in parts.items()})
        return values | {name: np.asarray(value) for name, value in found.items()}

    def working_bytes(self, weight: Tensor) -> int:
        """Lines of rows as they are and in the products' precision, and each fold's products in both precisions.

        On the host: of all rows and all but each fold's, five matrices in float64 (sums, what is left without a fold,
        scaled, factored, inverted), and 90 numbers a row.
        """
        rows, dim = weight.shape
        if weight.device.type == "cpu":
            return 8 * (5 * (1 + FOLDS) * dim * dim + 90 * rows)
        taken = 0 if weight.dtype == torch.float32 else weight.element_size()
        return (taken + 4) * min(rows * dim, LINE_ELEMENTS) + 2 * (4 + 8) * FOLDS * dim * dim

    def sent_bytes(self, weight: Tensor) -> int:
        """The moments of the rows of each fold, and the permuted target's slopes."""
        return 0 if weight.device.type == "cpu" else 8 * (FOLDS * 15 * 16 + 6 * weight.shape[1])

    def _measure(self, state: State) -> dict[str, Tensor | float]:
        """All that needs the embedding, small enough to travel."""
        embedding = state.output_embedding
        rows, never, _, _ = self._prepared.of(embedding)
        with exact_products(embedding.device.type):
            scored, mean_row = self._refine(state) or self._solve(state)
            parts, slope = scored.parts(), scored.found.slope[:, 0]
            parts["asked"] = float(len(rows))
            parts["turn"] = self._turn(state.step, slope)
            if self._never:
                parts |= vars(sum_unseen(embedding, never, mean_row=mean_row, slope=slope))
        return parts

    def _refine(self, state: State) -> tuple[Scored, Tensor] | None:
        """The second pass and the mean row from the latest earlier step's slopes, where that leads to the solution.

        Asking twice for a step begins at the same slopes. Where it fails, it is tried again ever later.
        """
        self._starts = [(step, start) for step, start in self._starts if step < state.step][-1:]
        if gram_wanted(state) or not self._starts or self._starts[0][1].worn:
            return None
        refined = refine(state.output_embedding, self._starts[0][1])
        if refined is None:
            self._failed = min(self._failed + 1, 6)
            self._resting = 2**self._failed - 1
            return None
        self._failed, self._gram_before = 0, False
        self._starts.append((state.step, refined.start))
        share_head_mean(state, self._prepared.of(state.output_embedding)[2], refined.mean_row)
        return refined.scored, refined.mean_row

    def _solve(self, state: State) -> tuple[Scored, Tensor]:
        """The same from sums, which the next record may start from and other metrics take."""
        embedding = state.output_embedding
        rows, _, kept, key = self._prepared.of(embedding)
        first = sum_rows(embedding, rows, dtype=product_dtype(embedding, rows=len(rows)))
        share_probe_sums(state, kept, first=first)
        share_probe_pass(state, key, first=first)
        found, factor = solve_with_factor(first.moments, exact=needs_exact(rows, dim=embedding.shape[1]))
        before = self._starts[0][1] if self._starts else None
        self._starts = []
        # no start where none has been of use: another metric takes each record's Gram, or the one before has failed
        wanted, self._gram_before = self._gram_before and gram_wanted(state), gram_wanted(state)
        self._resting = max(0, self._resting - 1)
        if not wanted and not self._resting:
            start = WarmStart.of(first, found, factor, vocab=len(embedding), before=before)
            self._starts = [] if start is None else [(state.step, start)]
        del factor
        return score(embedding, rows, first=first, found=found), first.moments.mean_x[0]

    def _finish(self, parts: Mapping[str, Any]) -> dict[str, Tensor | float]:
        """The figures, wherever the parts lie."""
        scored = Scored.of(parts, targets=2, norms=True)
        both = scored.fit
        fit, permuted = squeeze(both), squeeze(both, target=1)
        values = _figures(fit, permuted=permuted, norm=fit_row_norms(scored))
        values["probe.pivot"] = scored.found.pivot
        values["probe.excluded_rows"] = parts["asked"] - scored.rows
        values["probe.drift"] = cosine_of_products(parts["turn"])
        if self._never:
            control = UnseenSums.of(parts).figures(intercept=fit.intercept)
            values["probe.never_label_prediction"] = control.prediction
            values["probe.never_label_cosine"] = control.cosine
        return values

    def kept_bytes(self, state: State) -> Mapping[str, int]:
        """The factor and the sets of rows that records of a wide head on a CPU start from."""
        weight = state.head.weight
        if weight.device.type != "cpu":
            return {}
        return {"host": warm_bytes(vocab=len(weight), dim=weight.shape[1], sets=1 + FOLDS, targets=2)}

    def state_dict(self) -> dict[str, Any]:
        """The slope of the last record, which the next one's drift refers to. No factor: the next record makes one."""
        return {"slopes": [(step, slope.cpu()) for step, slope in self._slopes]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._slopes = [(int(step), slope) for step, slope in state["slopes"]]

    def _prepare(self, vocab: int, device: torch.device) -> tuple[Rows, Tensor, RowSet, bytes]:
        """What depends on counts alone: rows with both targets, never-label ids, and keys of what is shared."""
        chosen = self._selection.for_rows(vocab)
        assert chosen.counts is not None
        assert chosen.target is not None
        ids = chosen.mask.nonzero().flatten()
        permuted = torch.full_like(chosen.target, torch.nan)
        permuted[ids] = chosen.target[ids[permutation(ids)]]
        rows = Rows.build(torch.stack([chosen.target, permuted], 1), mask=chosen.mask, folds=FOLDS).to(device)
        never = (chosen.counts == 0).nonzero().flatten().to(device)
        return rows, never, RowSet.of_mask(chosen.mask, device=device), chosen.key

    def _turn(self, step: int, slope: Tensor) -> Tensor:
        """Products with the slope of the latest earlier step; asking twice for a step gives the same answer."""
        self._slopes = [(s, a) for s, a in self._slopes if s < step][-1:]
        before = self._slopes[0][1].to(slope.device) if self._slopes else torch.zeros_like(slope)
        self._slopes.append((step, slope))
        both = torch.stack([slope, before])
        return both @ both.T


def _figures(fit: ProbeFit, *, permuted: ProbeFit, norm: RowNormFit) -> dict[str, Tensor | float]:
    own = ("heldout_spearman", "heldout_pearson", "heldout_r2", "heldout_mse", "r2", "adjusted_r2", "null_r2")
    values: dict[str, Tensor | float] = {f"probe.{name}": getattr(fit, name) for name in own}
    values |= {f"probe.{name}": getattr(fit, name) for name in ("rank", "slope", "intercept")}
    values |= fold_figures("probe", fit)
    values["probe.permuted_heldout_spearman"] = permuted.heldout_spearman
    values["probe.permuted_heldout_r2"] = permuted.heldout_r2
    values["probe.row_norm_spearman"] = norm.heldout_spearman
    values["probe.row_norm_r2"] = norm.heldout_r2
    return values
