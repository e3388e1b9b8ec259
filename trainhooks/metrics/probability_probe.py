"""The live probability probe: the probe's figures for the model's own average output probability."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from trainhooks.core.schedule import Schedule
from trainhooks.core.variable import Variable
from trainhooks.metrics.base import Metric, State
from trainhooks.metrics.cached_by_shape import CachedByShape
from trainhooks.metrics.fold_outputs import FOLDS, HELD_OUT, fold_figures, fold_variables
from trainhooks.model.distributed import RankGroup
from trainhooks.probe.channels import channels
from trainhooks.probe.drift import slope_cosine, transfer_r2
from trainhooks.probe.fit import fit_probe
from trainhooks.probe.positions import MAX_POSITIONS, POSITIONS_PER_SEQUENCE, HiddenSample
from trainhooks.probe.probability import ProbabilitySums, mean_hidden_r2, probability_sums, split_half_reliability
from trainhooks.probe.row_selection import RowSelection
from trainhooks.probe.scored import ProbeFit, squeeze

ALGEBRAIC = (
    "log P is linear in E by construction, so an untrained model reaches R^2 near 1: no evidence alone, read it beside "
    "variance, untrained_r2 and r2_mean_hidden; no onset and no lead on this target"
)
WITH_FREQUENCY = "rank correlation with the corpus' log frequency, [-1, 1]"

VARIABLES = (
    Variable("probability.step", description="updates done by the state that all figures of this record describe"),
    Variable("probability.heldout_mse", unit="nat^2", description=f"{HELD_OUT}; of -log alpha on E; mean square error"),
    Variable("probability.heldout_r2", description=f"{HELD_OUT}; <= 1. {ALGEBRAIC}"),
    Variable("probability.heldout_spearman", description=f"{HELD_OUT}; per fold, averaged; [-1, 1]. {ALGEBRAIC}"),
    Variable("probability.r2", description=f"in-sample R^2, [0, 1]. {ALGEBRAIC}"),
    Variable("probability.variance", unit="nat^2", description="variance over tokens of y = -log alpha"),
    Variable("probability.r2_mean_hidden", description="r^2(E.mu, log alpha), [0, 1]: the baseline, nothing fitted"),
    Variable("probability.transfer_r2", description=f"{HELD_OUT}; slopes of the record before on this E and alpha"),
    Variable("probability.untrained_r2", description="heldout_r2 at the run's first observation, repeated"),
    Variable("probability.untrained_variance", unit="nat^2", description="variance at the first observation, repeated"),
    Variable("probability.untrained_step", description="step of that first observation: untrained only where it is 0"),
    Variable("probability.positions", description="positions that alpha averages over, all of one update"),
    Variable("probability.sequences", description="sequences that those positions come from"),
    Variable("probability.excluded_positions", description="sampled positions left out: softmax not finite"),
    Variable("probability.excluded_rows", description="rows of the mask left out: E not finite, or alpha = 0"),
    Variable(
        "probability.split_half_reliability",
        description="correlation over tokens of log alpha from even and odd sequences, [-1, 1]; not Spearman-Brown "
        "corrected: 2r/(1 + r) estimates the whole sample's; NaN for one sequence",
    ),
    Variable("probability.slope", ("dim",), unit="nat", description="slope A of -log alpha = A . E_w + B, all rows"),
    *fold_variables("probability"),
)
CHANNEL_VARIABLES = (
    Variable("probability.frequency_slope_cosine", description="cosine to the slope of -log(c/N) on the same rows"),
    Variable("channel.norm_bias", description=f"{WITH_FREQUENCY}, of E.beta; NaN without a norm bias; inside E"),
    Variable("channel.rest", description=f"{WITH_FREQUENCY}, of E.(mu - beta); NaN without a norm bias; inside E"),
    Variable("channel.mean_hidden", description=f"{WITH_FREQUENCY}, of E.mu, mu the sampled states' mean; inside E"),
    Variable("channel.head_bias", description=f"{WITH_FREQUENCY}, of the head's bias b; NaN without; outside E"),
    Variable("channel.embedding_r2", description=f"{HELD_OUT}; R^2 of -log(c/N) on E"),
    Variable("channel.head_bias_r2", description=f"{HELD_OUT}; R^2 of -log(c/N) on b; NaN without a head bias"),
    Variable("channel.joint_r2", description=f"{HELD_OUT}; R^2 of -log(c/N) on E and b; NaN without a head bias"),
)


class ProbabilityProbe(Metric):
    """The log-linear probe of y = -log alpha_w on the output embedding, from the hidden states of one update.

    alpha_w is the mean over sampled positions of softmax(E h + b)_w. `observe` takes what enters the head in the
    passes of update t + 1; `compute`, before the parameters move, gives the figures of the state after t updates,
    which `probability.step` names. Micro-batches of one update are put together, updates never. Without an
    observation for the state's update there are no values.

    R^2 is no evidence on this target, which is nearly algebraic: see the variables' descriptions. With `counts` the
    channels through which frequency enters are recorded as well. `min_count`, `exclude`, `mask`, `vocab_size` say
    which rows enter, as in `token_mask`; without counts these are all rows below `vocab_size` in the mask.
    `positions_per_sequence` and `max_positions` bound the sample, see `HiddenSample`: by default 1,024 positions,
    spread over as many sequences as the update has.

    Costs one product of E with the sampled states (2 vocab x dim x positions operations), two softmax passes, one
    fit and one pass for the transfer; with counts a fit for the channels, and a joint one where the head has a bias.
    The fits check their input and so wait for the device. Under data parallelism each rank samples so many, and their
    sums are added.

    Where everything is excluded (NaN in E or b) figures are left out, so NaN in the store, and the counts tell.
    Where all alpha are equal, R^2 and correlations are NaN.

    Source: Cho et al. 2025, arXiv 2406.01468; channels after Kobayashi et al. 2023. Raises ValueError for bad
    settings, and at the first record for counts or a mask that do not fit the embedding.
    """

    needs = frozenset({"hidden"})
    moment: Literal["after_update", "before_update"] = "before_update"

    def __init__(
        self,
        counts: Any = None,
        *,
        min_count: int = 1,
        exclude: Iterable[int] = (),
        mask: Bool[Tensor, "vocab"] | None = None,
        vocab_size: int | None = None,
        positions_per_sequence: int = POSITIONS_PER_SEQUENCE,
        max_positions: int = MAX_POSITIONS,
        schedule: Schedule | None = None,
    ) -> None:
        self.schedule = schedule
        self._selection = RowSelection.of(
            counts, min_count=min_count, exclude=exclude, mask=mask, vocab_size=vocab_size
        )
        self.variables = VARIABLES + (() if self._selection.counts is None else CHANNEL_VARIABLES)
        self._sample = HiddenSample(positions_per_sequence=positions_per_sequence, max_positions=max_positions)
        self._step: int | None = None
        self._prepared = CachedByShape(self._prepare)
        self._fits: list[tuple[int, ProbeFit]] = []
        self._untrained: dict[str, Tensor | float] = {}

    @torch.no_grad()
    def observe(self, hidden: Float[Tensor, "*sequences position dim"], *, step: int) -> None:
        """Sample from what enters the head in one pass of the model after `step` updates; another step starts anew.

        Each call's leading axes are sequences of their own; two axes are one sequence, so reshape packed states.
        """
        if step != self._step:
            self._sample.clear()
            self._step = step
        self._sample.add(hidden)

    def forget(self) -> None:
        """Take the sample back."""
        self._sample.clear()

    @torch.no_grad()
    def compute(self, state: State) -> Mapping[str, Tensor | float]:
        """All figures of the update that ends in `state.step`; empty where no pass of it was observed."""
        if self._sample.rows is None or self._step is None or state.step != self._step + 1:
            return {}
        embedding = state.output_embedding
        wanted, frequency = self._prepared.of(embedding)
        first = 0 if state.ranks is None else state.ranks.exclusive_sum(len(self._sample.sequence.unique()))
        even, odd = (self._half(state, parity=(first + parity) % 2) for parity in (0, 1))
        sums = even + odd
        wide = torch.promote_types(embedding.dtype, torch.float32)
        finite = torch.linalg.vector_norm(embedding, dim=1, dtype=wide).square().isfinite()
        mask = wanted & finite & sums.log_alpha.isfinite()
        values: dict[str, Tensor | float] = {
            "probability.step": float(self._step),
            "probability.positions": sums.positions,
            "probability.sequences": self._sequences(state),
            "probability.excluded_positions": sums.excluded,
            "probability.excluded_rows": wanted.sum() - mask.sum(),
            "probability.r2_mean_hidden": mean_hidden_r2(embedding, sums, mask=mask),
            "probability.split_half_reliability": split_half_reliability(even, odd, mask=mask),
        }
        if bool(mask.any()):
            values |= self._fit(embedding, sums, mask=mask, frequency=frequency)
            values |= _channel_figures(state, sums, mask=mask, frequency=frequency)
        return values | self._first_observation(values)

    def state_dict(self) -> dict[str, Any]:
        """The fit of the last record, which the next transfer starts from, and the figures of the first one."""
        host = {name: v.cpu() if isinstance(v, Tensor) else v for name, v in self._untrained.items()}
        fits = [(step, {name: value.cpu() for name, value in vars(fit).items()}) for step, fit in self._fits]
        return {"fits": fits, "untrained": host}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._fits = [(int(step), ProbeFit(**parts)) for step, parts in state["fits"]]
        self._untrained = dict(state["untrained"])

    def _prepare(self, vocab: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Which rows enter, and the frequency target (None without counts)."""
        chosen = self._selection.for_rows(vocab)
        return chosen.mask.to(device), None if chosen.target is None else chosen.target.to(device)

    def _sequences(self, state: State) -> float:
        mine = torch.tensor(float(len(self._sample.sequence.unique())))
        if state.ranks is None:
            return float(mine)
        return float(state.ranks.all_reduce_sum(mine * state.ranks.is_data_rank))

    def _half(self, state: State, *, parity: int) -> ProbabilitySums:
        assert self._sample.rows is not None
        where = (self._sample.sequence % 2 == parity).nonzero().flatten()
        rows = self._sample.rows[where.to(self._sample.rows.device)]
        sums = probability_sums(state.output_embedding, rows, bias=state.head.bias)
        return sums if state.ranks is None else add_over_ranks(sums, ranks=state.ranks)

    def _fit(
        self, embedding: Tensor, sums: ProbabilitySums, *, mask: Tensor, frequency: Tensor | None
    ) -> dict[str, Tensor | float]:
        targets = torch.stack([-sums.log_alpha, *([] if frequency is None else [frequency])], 1)
        fit = fit_probe(embedding, targets, mask=mask, folds=FOLDS)
        names = ("heldout_mse", "heldout_r2", "heldout_spearman", "r2", "variance", "slope")
        values: dict[str, Tensor | float] = {f"probability.{name}": getattr(fit, name)[0] for name in names}
        values |= fold_figures("probability", squeeze(fit))
        assert self._step is not None
        self._fits = [(step, kept) for step, kept in self._fits if step < self._step][-1:]
        if self._fits:
            values["probability.transfer_r2"] = transfer_r2(self._fits[0][1], embedding, targets, mask=mask)[0]
        self._fits.append((self._step, fit))
        if frequency is not None:
            values["probability.frequency_slope_cosine"] = slope_cosine(fit.slope[0], fit.slope[1])
        return values

    def _first_observation(self, values: Mapping[str, Tensor | float]) -> dict[str, Tensor | float]:
        if not self._untrained:
            self._untrained = {
                "probability.untrained_r2": values.get("probability.heldout_r2", torch.nan),
                "probability.untrained_variance": values.get("probability.variance", torch.nan),
                "probability.untrained_step": values["probability.step"],
            }
        return self._untrained


def _channel_figures(
    state: State, sums: ProbabilitySums, *, mask: Tensor, frequency: Tensor | None
) -> dict[str, Tensor | float]:
    """The channels of frequency that the model has; empty without a frequency target."""
    if frequency is None:
        return {}
    found = channels(
        state.output_embedding,
        frequency,
        mask=mask,
        norm_bias=state.head.norm_bias,
        mean_hidden=sums.mean_hidden,
        head_bias=state.head.bias,
        folds=FOLDS,
    )
    return {f"channel.{name}": value for name, value in vars(found).items() if value is not None}


def add_over_ranks(sums: ProbabilitySums, *, ranks: RankGroup) -> ProbabilitySums:
    """The sums over the positions of all ranks (collective); of ranks that see the same batches one counts."""
    if ranks.is_single:
        return sums
    log_sum = sums.log_sum if ranks.is_data_rank else torch.full_like(sums.log_sum, -torch.inf)
    most = ranks.all_reduce_max(log_sum)
    shift = torch.where(most.isfinite(), most, 0)  # -inf everywhere stays -inf
    counted = [part * ranks.is_data_rank for part in (sums.hidden_sum, sums.positions, sums.excluded)]
    hidden_sum, positions, excluded = (ranks.all_reduce_sum(part) for part in counted)
    return ProbabilitySums(ranks.all_reduce_sum((log_sum - shift).exp()).log() + shift, hidden_sum, positions, excluded)
