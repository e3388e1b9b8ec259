"""Steering from a model's name and text to a report: the whole of `trainhooks steer`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from trainhooks.core.formatting import finite
from trainhooks.core.printable import page
from trainhooks.core.token_counts import TokenCounts
from trainhooks.intervene.contexts import choose_windows, read_documents, run_windows, split_documents
from trainhooks.intervene.early_checks import check_model, check_names
from trainhooks.intervene.steering.directions import BASELINES, SOLVED, make_directions
from trainhooks.intervene.steering.edits import RATIOS, Edit, Steering, SteeringData, check_documents, steer_with
from trainhooks.intervene.steering.few_samples import FewSamples, few_sample_curve
from trainhooks.intervene.steering.real_pass import RealPass, apply_edit, mean_probability
from trainhooks.intervene.steering.scales import check_ratios
from trainhooks.intervene.target import Target, load_target

_HEADER = (
    f"{'direction':<13}{'ratio':>6} {'feasible':>9} {'achieved':>9} {'error':>7} {'in 95%':>7} {'as bias':>8} "
    f"{'size':>6} {'spread':>7} {'JS':>8} {'top-1':>6} {'loss':>8}"
)


@dataclass(frozen=True)
class SteeringReport:
    """What `trainhooks steer` says: `steering`, the edits that were run for real, and the few-sample curve."""

    model: str
    notes: tuple[str, ...]
    steering: Steering
    real: tuple[RealPass, ...]
    few_samples: tuple[FewSamples, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; a figure that is not defined is None."""
        few = [
            {"documents": f.documents, "cosine": f.cosine.tolist(), "error": f.error.tolist()} for f in self.few_samples
        ]
        plain: dict[str, Any] = {"model": self.model, "notes": self.notes, "few_samples": few}
        plain |= {"steering": asdict(self.steering), "real_pass": [asdict(one) for one in self.real]}
        cleaned: dict[str, Any] = finite(plain)
        return cleaned

    def render(self) -> str:
        """Tables: medians over tokens by direction and ratio, errors by frequency bin, real passes, few samples."""
        s = self.steering
        lines = [
            f"{self.model}: slope and scale from {s.calibration_positions} positions of {s.calibration_documents} "
            f"documents, tested on {s.test_positions} of {s.test_documents}; loss {s.loss:.3f} nats",
            *self.notes,
            _steered(s.edits),
            "",
            "Medians over tokens. error: |achieved / ratio - 1|; in 95%: ratio in the interval over documents; as",
            "bias: no different from the plain logit bias; size |dE|/|E_w|; spread: sd of log(P'/P); loss: change.",
            _HEADER,
        ]
        groups: dict[tuple[str, float], list[Edit]] = {}
        for edit in s.edits:
            groups.setdefault((edit.direction, edit.requested), []).append(edit)
        lines += [_row(name, ratio, edits) for (name, ratio), edits in groups.items()]
        lines += [
            "",
            "Median error by frequency (rank among the calibration text's labels, or in the counts given)",
            *_by_bin(s.edits),
        ]
        lines += [f"together: {_joint(s)}"] if s.joint else []
        lines += [
            f"real pass, {one.direction}, token {one.token} x {one.requested:g}: {one.untied:.4f} "
            f"(closed form {one.closed_form:.4f})"
            + ("" if one.tied is None else f"; input side edited too {one.tied:.4f}")
            for one in self.real
        ]
        lines += [
            f"slope from {f.documents} documents: cosine {float(f.cosine.median()):.3f}, error at scale log r "
            f"{float(f.error.median()):.3f}"
            for f in self.few_samples
        ]
        return page(lines)


def check_steering(*, ratios: Sequence[float], directions: Sequence[str]) -> None:
    """Raises ValueError for a direction that there is not, and for ratios that are not above 0."""
    check_names("direction", directions, known=(*SOLVED, *BASELINES))
    check_ratios(torch.tensor(ratios, dtype=torch.float64))


def run_steering(
    model: str | Path,
    *,
    text: Sequence[str | Path],
    tokens: Sequence[int | str] | int = 20,
    ratios: Sequence[float] = RATIOS,
    directions: Sequence[str] = (*SOLVED, *BASELINES),
    store: str | Path | None = None,
    step: int | None = None,
    tokenizer: str | Path | None = None,
    context_length: int = 128,
    max_positions: int = 8192,
    calibration: float = 0.5,
    seed: int = 0,
    untie: bool = False,
    counts: str | Path | None = None,
    save: str | Path | None = None,
) -> SteeringReport:
    """Steer a model on text; see `steer`. With `save` the edit is written as a model: one direction, one ratio, all
    tokens together; a tied input embedding takes the edit too, unless `untie`. `counts` is a file of `TokenCounts`,
    for the frequency bins.

    Raises ValueError as `load_target`, `read_documents`, `split_documents`, `collect_contexts` and `steer` do, and
    where `save` is asked for with several directions or ratios.
    """
    if save is not None and (len(ratios) != 1 or len(directions) != 1 or isinstance(tokens, int)):
        raise ValueError(
            "saving needs the tokens named, one ratio and one direction: pass --tokens, --ratios and --direction."
        )
    check_steering(ratios=ratios, directions=directions)
    documents = read_documents(text)
    check_model(model)
    target = load_target(model, store=store, step=step, tokenizer=tokenizer)
    frequency = None if counts is None else token_frequency(counts, target)
    known, unseen = split_documents(documents, calibration=calibration, seed=seed)
    window: dict[str, Any] = {"context_length": context_length, "max_positions": max_positions, "seed": seed}
    windows, held_out = (choose_windows(target, part, **window) for part in (known, unseen))
    first, second = (run_windows(target, part, max_positions=max_positions) for part in (windows, held_out))
    check_documents(first, second)
    bench = SteeringData.build(target, first, second, counts=frequency)
    found = steer_with(target, bench, tokens=tokens, ratios=ratios, directions=directions, seed=seed)
    chosen = list(dict.fromkeys(edit.token for edit in found.edits))
    real = tuple(_real_pass(target, bench, edit, held_out) for edit in _to_check(found))
    few = few_sample_curve(bench, tokens=chosen, ratios=ratios, vocab_size=target.tokenizer.size, seed=seed)
    if save is not None:
        _edited(target, bench, found, chosen, untie=untie).save(save)
    return SteeringReport(str(model), _notes(target, found, untie), found, real, tuple(few))


def token_frequency(counts: str | Path, target: Target) -> Float64[Tensor, "vocab"]:
    """Counts of a file, 0 for padding rows. Raises ValueError where their number is not that of the tokenizer's ids."""
    found = TokenCounts.load(counts)
    return torch.from_numpy(found.for_rows(target.vocab, vocab_size=target.tokenizer.size)).double()


def _to_check(found: Steering) -> list[Edit]:
    """The first feasible edit of each solved direction, of the token in the middle of the list."""
    tokens = list(dict.fromkeys(edit.token for edit in found.edits))
    middle = [e for e in found.edits if e.token == tokens[len(tokens) // 2] and e.feasible and e.requested != 1]
    return [
        next(e for e in middle if e.direction == name) for name in SOLVED if any(e.direction == name for e in middle)
    ]


def _real_pass(target: Target, bench: SteeringData, edit: Edit, windows: Sequence[tuple[int, list[int]]]) -> RealPass:
    [direction] = make_directions(
        [edit.direction], slope=bench.slope, weight=bench.weight, hidden=bench.calibration.hidden
    )
    before = mean_probability(target, bench.test, [edit.token])

    def ratio(untie: bool) -> float:
        edited = apply_edit(target, direction, tokens=[edit.token], scales=[edit.scale], untie=untie)
        after = mean_probability(edited, run_windows(edited, windows, max_positions=len(bench.test)), [edit.token])
        return float(after / before)

    tied = ratio(False) if target.tied and direction.vector is not None else None
    return RealPass(edit.token, edit.direction, edit.requested, edit.achieved, ratio(True), tied)


def _edited(target: Target, bench: SteeringData, found: Steering, tokens: list[int], *, untie: bool) -> Target:
    name = found.edits[0].direction
    if name in BASELINES:
        raise ValueError(f"{name} is a reference of many draws; save one of {', '.join(SOLVED)}.")
    [direction] = make_directions([name], slope=bench.slope, weight=bench.weight, hidden=bench.calibration.hidden)
    scales = found.joint[0].scales if found.joint else (found.edits[0].scale,)
    return apply_edit(target, direction, tokens=tokens, scales=scales, untie=untie)


def _notes(target: Target, found: Steering, untie: bool) -> tuple[str, ...]:
    head = target.head
    notes = []
    if head.norm_name is None:
        notes.append("No norm stands before the head.")
    elif found.constant_gauge:
        notes.append("A LayerNorm with bias stands before the head: least_spread is the logit bias in another guise.")
    else:
        bias = "no bias" if head.norm_bias is None else "a bias"
        notes.append(
            f"The last norm ({head.norm_name}, {bias}) leaves no constant in its output: no direction is a logit bias."
        )
    notes.append(
        f"The head has {'no bias' if target.bias is None else 'a bias, which is left alone but by logit_bias'}."
    )
    if target.tied:
        side = (
            "is untied: the input side keeps its old rows"
            if untie
            else "takes a saved edit too, so its contexts change"
        )
        notes.append(f"The input embedding is the same matrix; figures are of the output side, and it {side}.")
    return tuple(notes)


def _steered(edits: Sequence[Edit]) -> str:
    """Which tokens these are, with their bin of frequency."""
    tokens = {edit.token: f"{edit.piece!r} ({edit.token}, {edit.bin})" for edit in edits}
    return f"{len(tokens)} tokens (id, frequency): {', '.join(tokens.values())}"


def _row(name: str, ratio: float, edits: list[Edit]) -> str:
    ok = [edit for edit in edits if edit.feasible]
    if not ok:
        return f"{name:<13}{ratio:>6g} {'0/' + str(len(edits)):>9}  infeasible"

    def middle(field: str) -> float:
        median: float = statistics.median(getattr(edit, field) for edit in ok)
        return median

    inside = sum(edit.low <= ratio <= edit.high for edit in ok)
    as_bias = "" if name in BASELINES else f"{sum(e.beside_bias[0] <= 0 <= e.beside_bias[1] for e in ok)}/{len(ok)}"
    return (
        f"{name:<13}{ratio:>6g} {f'{len(ok)}/{len(edits)}':>9} {middle('achieved'):>9.3f} {_error(ok):>7.1%} "
        f"{f'{inside}/{len(ok)}':>7} {as_bias:>8} {middle('size'):>6.2f} {middle('spread'):>7.3f} {middle('js'):>8.5f} "
        f"{middle('agreement'):>6.3f} {middle('loss_change'):>8.4f}"
    )


def _error(edits: list[Edit]) -> float:
    return statistics.median(abs(edit.achieved / edit.requested - 1) for edit in edits)


def _by_bin(edits: Sequence[Edit]) -> list[str]:
    bins = list(dict.fromkeys(edit.bin for edit in edits))
    lines = [f"{'':<13}" + "".join(f"{name:>18}" for name in bins)]
    for name in dict.fromkeys(edit.direction for edit in edits):
        cells = []
        for bin_ in bins:
            ok = [edit for edit in edits if edit.direction == name and edit.bin == bin_ and edit.feasible]
            cells.append(f"{_error(ok):>18.1%}" if ok else f"{'infeasible':>18}")
        lines.append(f"{name:<13}" + "".join(cells))
    return lines


def _joint(found: Steering) -> str:
    parts = []
    for joint in found.joint:
        pairs = [abs(value / joint.requested - 1) for value in joint.achieved]
        error = f"{statistics.median(pairs):.1%}" if joint.feasible else "infeasible"
        parts.append(f"{joint.direction} x {joint.requested:g} {error}")
    return "; ".join(parts)
