"""Steer tokens: multiply their mean probability by r, by every direction, beside every reference."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from trainhooks.intervene.bootstrap import document_draws, interval, log_ratio_draws
from trainhooks.intervene.contexts import Contexts
from trainhooks.intervene.frequency_bins import FrequencyBins, frequency_bins
from trainhooks.intervene.outputs import Outputs, outputs, token_log_p
from trainhooks.intervene.slope import probability_slope
from trainhooks.intervene.steering.directions import (
    BASELINES,
    SOLVED,
    EditDirection,
    make_directions,
    random_directions,
)
from trainhooks.intervene.steering.effects import Effects, effects
from trainhooks.intervene.steering.scales import check_ratios, find_joint_scales, find_scales, joint_log_p, log_odds
from trainhooks.intervene.target import Target

RATIOS = (0.05, 0.2, 0.5, 2.0, 5.0, 10.0, 20.0)


@dataclass(frozen=True)
class Edit:
    """One token, one direction, one requested ratio r; means over test positions, NaN where infeasible.

    `scale` is c; `predicted` the calibration ratio that c = log r would give (the paper's scale; NaN for directions
    without one), `calibration` the one that was reached. `achieved` is mean P' / mean P on the test documents with
    its 95% interval `low`, `high` over documents; `beside_bias` the 95% interval of log(achieved / the plain logit
    bias's), paired by document. `size` |dE| / |E_w|. The rest as in `Effects`. Random references are medians over
    draws, and `low`, `high` the 95% range of `achieved` over the draws.
    """

    token: int
    piece: str
    bin: str
    direction: str
    requested: float
    feasible: bool
    scale: float
    predicted: float
    calibration: float
    achieved: float
    low: float
    high: float
    beside_bias: tuple[float, float]
    size: float
    ridge: float
    spread: float
    js: float
    js_rest: float
    agreement: float
    loss_change: float


@dataclass(frozen=True)
class JointEdit:
    """Several tokens brought to one ratio together, by one direction: `scales`, `achieved` (test) by token."""

    direction: str
    requested: float
    feasible: bool
    scales: tuple[float, ...]
    calibration: tuple[float, ...]
    achieved: tuple[float, ...]


@dataclass(frozen=True)
class Steering:
    """All edits of a model, and what they rest on: positions and documents of each part, loss in nats a label on the
    test part, whether 1/gamma . h is the same in all contexts (`constant_gauge`: a LayerNorm, where least spread is a
    logit bias)."""

    edits: tuple[Edit, ...]
    joint: tuple[JointEdit, ...]
    calibration_positions: int
    calibration_documents: int
    test_positions: int
    test_documents: int
    loss: float
    constant_gauge: bool


@dataclass(frozen=True)
class SteeringData:
    """A head with what it says on calibration and test contexts, computed once for all edits."""

    weight: Float[Tensor, "vocab dim"]
    bias: Float[Tensor, "vocab"] | None
    calibration: Contexts
    test: Contexts
    before: Outputs
    before_test: Outputs
    slope: Float64[Tensor, "dim"]
    bins: FrequencyBins

    @classmethod
    def build(
        cls, target: Target, calibration: Contexts, test: Contexts, *, counts: Float64[Tensor, "vocab"] | None = None
    ) -> SteeringData:
        """Two passes over vocabulary-sized logits and the fit of the slope.

        Frequency is `counts`, else how often a token is a label in the calibration text; ties go by the model's mean
        probability.
        """
        before = outputs(target.weight, target.bias, calibration)
        slope = probability_slope(target.weight, before.alpha, vocab_size=target.tokenizer.size)
        labels = torch.bincount(calibration.labels, minlength=target.vocab).double()
        seen = (labels if counts is None else counts) + before.alpha
        seen[target.tokenizer.size :] = 0
        return cls(
            weight=target.weight,
            bias=target.bias,
            calibration=calibration,
            test=test,
            before=before,
            before_test=outputs(target.weight, target.bias, test),
            slope=slope,
            bins=frequency_bins(seen),
        )


def steer(
    target: Target,
    calibration: Contexts,
    test: Contexts,
    *,
    tokens: Sequence[int | str] | int = 20,
    ratios: Sequence[float] = RATIOS,
    directions: Sequence[str] = (*SOLVED, *BASELINES),
    draws: int = 8,
    resamples: int = 1000,
    counts: Float64[Tensor, "vocab"] | None = None,
    seed: int = 0,
) -> Steering:
    """Every token by every direction to every ratio, one at a time, and all tokens together.

    Slope and scale come from `calibration`, everything reported from `test`, whose hidden states are of the model's
    real forward pass; since only logit w moves, the edited head's output follows exactly. `tokens` are ids or text, or
    how many to pick over the frequency bins, the commonest first; `counts` as in `SteeringData.build`. `draws` are
    random directions a reference.

    Raises ValueError for a text that is not one token, a ratio that is not above 0, an unknown direction, and for a
    part that has one document only (no interval).
    """
    check_ratios(torch.tensor(list(ratios), dtype=torch.float64))
    check_documents(calibration, test)
    bench = SteeringData.build(target, calibration, test, counts=counts)
    settings: dict[str, Any] = {"tokens": tokens, "ratios": ratios, "directions": directions}
    return steer_with(target, bench, **settings, draws=draws, resamples=resamples, seed=seed)


def check_documents(calibration: Contexts, test: Contexts) -> None:
    """Raise ValueError where a part has one document only: there is no interval then."""
    if min(calibration.documents, test.documents) < 2:
        raise ValueError(
            f"calibration has {calibration.documents} documents and test {test.documents}; needed 2 or more in each, "
            "for intervals over documents. Give more files, more positions or a smaller context_length."
        )


def steer_with(
    target: Target,
    bench: SteeringData,
    *,
    tokens: Sequence[int | str] | int = 20,
    ratios: Sequence[float] = RATIOS,
    directions: Sequence[str] = (*SOLVED, *BASELINES),
    draws: int = 8,
    resamples: int = 1000,
    seed: int = 0,
) -> Steering:
    """`steer` with what it takes from both parts, computed before."""
    wanted = torch.tensor(list(ratios), dtype=torch.float64)
    check_ratios(wanted)
    calibration, test = bench.calibration, bench.test
    picked = bench.bins.pick(tokens) if isinstance(tokens, int) else [target.tokenizer.token_id(t) for t in tokens]
    if not picked or not len(wanted):
        raise ValueError(f"got {len(picked)} tokens and {len(wanted)} ratios; needed one or more of each.")
    solved = [name for name in directions if name not in BASELINES]
    made = make_directions(solved, slope=bench.slope, weight=target.weight, hidden=calibration.hidden)
    random = random_directions(target.weight.shape[1], draws=draws, seed=seed)
    counts = document_draws(test.documents, draws=resamples, seed=seed)
    worker = _Steerer(target, bench, made, random, [n for n in directions if n in BASELINES], wanted, counts)
    edits = tuple(edit for token in picked for edit in worker.token_edits(token))
    return Steering(
        edits=edits,
        joint=tuple(worker.joint_edits(picked)) if len(picked) > 1 else (),
        calibration_positions=len(calibration),
        calibration_documents=calibration.documents,
        test_positions=len(test),
        test_documents=test.documents,
        loss=-float(bench.before_test.label_log_p.mean()),
        constant_gauge=has_constant_gauge(target, calibration),
    )


def has_constant_gauge(target: Target, contexts: Contexts) -> bool:
    """Whether (1/gamma) . h is one number, not 0, over all contexts: so behind a LayerNorm that has a bias."""
    scale = target.head.norm_scale
    if scale is None or not bool((scale != 0).all()):
        return False
    gauge = contexts.hidden.double() @ (1 / scale.detach().double())
    return bool(gauge.std(correction=0) < 1e-3 * gauge.mean().abs())


@dataclass(frozen=True)
class _Steerer:
    target: Target
    bench: SteeringData
    made: list[EditDirection]
    random: Tensor
    references: list[str]
    ratios: Tensor
    counts: Tensor

    def token_edits(self, token: int) -> list[Edit]:
        """All edits of one token."""
        bench = self.bench
        log_p = token_log_p(bench.weight, bench.bias, bench.calibration, bench.before, [token])[0]
        log_q = token_log_p(bench.weight, bench.bias, bench.test, bench.before_test, [token])[0]
        bias = self._bias_draws(token, log_p, log_q)
        edits: list[Edit] = []
        for direction in self.made:
            edits += self._solved(token, direction, log_p, log_q, bias)
        if self.references:
            least = make_directions(
                ["least_norm"], slope=bench.slope, weight=bench.weight, hidden=bench.calibration.hidden
            )[0]
            scales = find_scales(log_p, least.shift(bench.calibration.hidden), self.ratios)
            for name in self.references:
                edits += self._random(name, token, least=least, scales=scales, log_p=log_p, log_q=log_q)
        return edits

    def _bias_draws(self, token: int, log_p: Tensor, log_q: Tensor) -> Tensor:
        """The plain logit bias's log ratios over resampled documents [ratio, draw]."""
        scales = find_scales(log_p, torch.ones_like(log_p), self.ratios)
        found = self._effects(token, scales[:, None].expand(-1, len(log_q)), log_q)
        return log_ratio_draws(found.sums, found.old_sums, self.counts)

    def _effects(self, token: int, moved: Tensor, log_q: Tensor) -> Effects:
        return effects(token, moved, log_p=log_q, contexts=self.bench.test, before=self.bench.before_test)

    def _solved(self, token: int, direction: EditDirection, log_p: Tensor, log_q: Tensor, bias: Tensor) -> list[Edit]:
        shift = direction.shift(self.bench.calibration.hidden)
        scales = find_scales(log_p, shift, self.ratios)
        found = self._effects(token, scales[:, None] * direction.shift(self.bench.test.hidden), log_q)
        drawn = log_ratio_draws(found.sums, found.old_sums, self.counts)
        low, high = interval(drawn).exp()
        beside = interval(drawn - bias)
        predicted = _mean_ratio(log_p, self.ratios.log()[:, None] * shift)
        reached = _mean_ratio(log_p, scales[:, None] * shift)
        step = 0.0 if direction.vector is None else float(direction.vector.norm())
        size = scales.abs() * step / self.bench.weight[token].double().norm()
        return [
            replace(
                self._edit(token, direction.name, i, found),
                scale=float(scales[i]),
                predicted=math.nan if direction.name in ("least_spread", "logit_bias") else float(predicted[i]),
                calibration=float(reached[i]),
                low=float(low[i]),
                high=float(high[i]),
                beside_bias=(float(beside[0, i]), float(beside[1, i])),
                size=float(size[i]),
                ridge=direction.ridge,
            )
            for i in range(len(self.ratios))
        ]

    def _random(
        self, name: str, token: int, *, least: EditDirection, scales: Tensor, log_p: Tensor, log_q: Tensor
    ) -> list[Edit]:
        """Random directions with the norm, or the mean shift on calibration, of the least-norm edit."""
        assert least.vector is not None
        states, held_out = self.bench.calibration.hidden, self.bench.test.hidden
        shifts = (states @ self.random.T.to(states.dtype)).double().T
        test_shifts = (held_out @ self.random.T.to(states.dtype)).double().T
        if name == "random_norm":
            by_draw = (scales.abs() * least.vector.norm())[:, None].expand(-1, len(self.random))
        else:
            by_draw = (scales * least.shift(states).mean())[:, None] / shifts.mean(1)
        edits = []
        for i in range(len(self.ratios)):
            found = self._effects(token, by_draw[i, :, None] * test_shifts, log_q)
            reached = _mean_ratio(log_p, by_draw[i, :, None] * shifts)
            low, high = interval(found.ratio)
            middle = Effects(
                **{field: values.nanmedian(0).values[None] for field, values in _by_edit(found).items()},
                sums=found.sums[:1],
                old_sums=found.old_sums,
            )
            size = by_draw[i].abs().median() / self.bench.weight[token].double().norm()
            edit = self._edit(token, name, 0, middle, requested=float(self.ratios[i]))
            edits.append(
                replace(edit, calibration=float(reached.median()), low=float(low), high=float(high), size=float(size))
            )
        return edits

    def _edit(self, token: int, name: str, i: int, found: Effects, *, requested: float | None = None) -> Edit:
        values = {field: float(column[i]) for field, column in _by_edit(found).items()}
        return Edit(
            token=token,
            piece=self.target.tokenizer.piece(token),
            bin=self.bench.bins.label(self.bench.bins.of(token)),
            direction=name,
            requested=float(self.ratios[i]) if requested is None else requested,
            feasible=math.isfinite(values["ratio"]),
            scale=math.nan,
            predicted=math.nan,
            calibration=math.nan,
            achieved=values.pop("ratio"),
            low=math.nan,
            high=math.nan,
            beside_bias=(math.nan, math.nan),
            size=math.nan,
            ridge=0.0,
            **values,
        )

    def joint_edits(self, tokens: list[int]) -> Iterator[JointEdit]:
        """All tokens brought to one ratio together, by each solved direction."""
        bench = self.bench
        log_p = token_log_p(bench.weight, bench.bias, bench.calibration, bench.before, tokens)
        log_q = token_log_p(bench.weight, bench.bias, bench.test, bench.before_test, tokens)
        for direction in self.made:
            shift = direction.shift(bench.calibration.hidden).expand_as(log_p)
            held_out = direction.shift(bench.test.hidden).expand_as(log_q)
            for ratio in self.ratios:
                scales = find_joint_scales(log_p, shift, ratio.expand(len(tokens)))
                reached = joint_log_p(log_p, scales[:, None] * shift).exp().mean(1) / log_p.exp().mean(1)
                achieved = joint_log_p(log_q, scales[:, None] * held_out).exp().mean(1) / log_q.exp().mean(1)
                yield JointEdit(
                    direction=direction.name,
                    requested=float(ratio),
                    feasible=bool(scales.isfinite().all()),
                    scales=tuple(scales.tolist()),
                    calibration=tuple(reached.tolist()),
                    achieved=tuple(achieved.tolist()),
                )


def _by_edit(found: Effects) -> dict[str, Tensor]:
    names = ("ratio", "spread", "js", "js_rest", "agreement", "loss_change")
    return {name: getattr(found, name) for name in names}


def _mean_ratio(log_p: Tensor, moved: Tensor) -> Tensor:
    """mean P' / mean P where the logit moves by `moved` [edit, position]."""
    return torch.sigmoid(log_odds(log_p) + moved).mean(1) / log_p.exp().mean()
