"""Interventions over training: the model at each step with its contexts, and a figure against the step."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from trainhooks.checkpoints.suite import list_suite
from trainhooks.core.formatting import finite
from trainhooks.core.printable import page
from trainhooks.intervene.contexts import Contexts, choose_windows, read_documents, run_windows, split_documents
from trainhooks.intervene.deletion.orders import RANDOM
from trainhooks.intervene.deletion.prune import Pruning, prune, token_mask_of
from trainhooks.intervene.early_checks import check_model
from trainhooks.intervene.steering.directions import BASELINES, SOLVED
from trainhooks.intervene.steering.edits import RATIOS, Steering, steer
from trainhooks.intervene.target import Target, load_target, store_matrix

WHOLE = "Every step is its own whole model: hidden states, slope and figures are that checkpoint's."
HEAD = (
    "Only the head is of the step; body and hidden states are those of {model} at every step: no such model ever was."
)


@dataclass(frozen=True)
class StepModel:
    """A step's model with its calibration and test contexts; the windows of text are the same at every step."""

    step: int
    target: Target
    calibration: Contexts
    test: Contexts


@dataclass(frozen=True)
class StepModels:
    """The steps of a run from the last to the first, one model in memory at a time; walked once.

    `note` says whose hidden states they are.
    """

    note: str
    found: Iterator[StepModel]

    def __iter__(self) -> Iterator[StepModel]:
        """Moments, each made when it is asked for."""
        return self.found


@dataclass(frozen=True)
class TrainingCurve:
    """A figure against the step: `rows`, by rising step, each with `step` and the names in `columns`.

    `note` says whose hidden states they are. A figure that is not defined is NaN, None in `to_dict`.
    """

    note: str
    columns: tuple[str, ...]
    rows: tuple[dict[str, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        cleaned: dict[str, Any] = finite({"note": self.note, "rows": self.rows})
        return cleaned

    def render(self) -> str:
        """A table, a step a line."""
        width = {name: max(8, len(name)) for name in self.columns}
        lines = [self.note, f"{'step':>8}" + "".join(f"  {name:>{width[name]}}" for name in self.columns)]
        for row in self.rows:
            cells = "".join(f"  {row[name]:>{width[name]}.3f}" for name in self.columns)
            lines.append(f"{row['step']:>8g}{cells}")
        return page(lines)


def moments(
    model: str | Path,
    *,
    text: Sequence[str | Path],
    over: str = "all",
    store: str | Path | None = None,
    tokenizer: str | Path | None = None,
    context_length: int = 128,
    max_positions: int = 8192,
    seed: int = 0,
) -> StepModels:
    """The steps of a run, each with its model and contexts.

    Without `store`, `model` is a folder of whole checkpoints (`list_suite`) and contexts are each checkpoint's own.
    With it, the store's output embeddings stand one after the other in the body of `model`. `over` selects steps as
    `parse_steps` does, "all" takes all. Raises ValueError for a suite that is not of folders, and as `list_suite` and
    `split_documents`; while it is walked as `load_target` and `choose_windows`.
    """
    if store is not None:
        check_model(model)
    suite = list_suite(model if store is None else store, steps=None if over == "all" else over)
    parts = split_documents(read_documents(text), seed=seed)
    load = partial(load_target, tokenizer=tokenizer)

    def contexts(target: Target) -> tuple[Contexts, ...]:
        chosen = [
            choose_windows(target, part, context_length=context_length, max_positions=max_positions, seed=seed)
            for part in parts
        ]
        return tuple(run_windows(target, windows, max_positions=max_positions) for windows in chosen)

    if store is not None:
        heads = ((step, store_matrix(store, step)) for step in reversed(suite.steps))
        return StepModels(HEAD.format(model=model), _in_one_body(lambda: load(model), heads, contexts))
    if suite.kind not in ("folder", "list"):
        raise ValueError(
            f"{model} is a {suite.kind}; whole models at each step are read from folders. Download the steps into "
            "folders step{N}, or give a store together with the model whose body it goes into."
        )
    models = ((entry.step, load(entry.location)) for entry in reversed(suite.entries))
    return StepModels(WHOLE, (StepModel(step, target, *contexts(target)) for step, target in models))


def prune_along(series: StepModels, **options: Any) -> TrainingCurve:
    """`prune` at each moment: for each variant the largest fraction in ascending order, the random orders' mean, and
    what saliency gains with its interval; `loss` of the unmodified model, nats. `options` are those of `prune`.

    Raises ValueError as `prune`.
    """
    return _collect(series, lambda moment: _prune_figures(_pruned(moment, options)))


def steer_along(
    series: StepModels,
    *,
    tokens: Sequence[int | str] | int = 20,
    ratios: Sequence[float] = RATIOS,
    directions: Sequence[str] = (*SOLVED, *BASELINES),
    seed: int = 0,
) -> TrainingCurve:
    """`steer` at each moment, the same tokens at all (those picked at the last step): for each direction the median
    |log(achieved / r)| over tokens and ratios on test documents, infeasible ones left out, and for those made of the
    slope the same at the paper's scale log r, without a search (`.paper`).

    Raises ValueError as `steer`.
    """
    chosen: list[Sequence[int | str] | int] = [tokens]

    def figures(moment: StepModel) -> dict[str, float]:
        found = steer(
            moment.target,
            moment.calibration,
            moment.test,
            tokens=chosen[-1],
            ratios=ratios,
            directions=directions,
            seed=seed,
        )
        chosen.append(list(dict.fromkeys(edit.token for edit in found.edits)))
        return _steer_figures(found)

    return _collect(series, figures)


def _in_one_body(
    load: Callable[[], Target],
    heads: Iterator[tuple[int, Tensor]],
    contexts: Callable[[Target], tuple[Contexts, ...]],
) -> Iterator[StepModel]:
    body = load()
    calibration, test = contexts(body)
    for step, head in heads:
        yield StepModel(step, body.with_head(head), calibration, test)


def _pruned(moment: StepModel, options: dict[str, Any]) -> Pruning:
    target = moment.target
    own: dict[str, Any] = {"bias": target.bias, "mask": token_mask_of(target)}
    return prune(target.weight, calibration=moment.calibration, test=moment.test, **own, **options)


def _collect(series: StepModels, figures: Callable[[StepModel], dict[str, float]]) -> TrainingCurve:
    rows = [{"step": float(moment.step), **figures(moment)} for moment in series]
    rows.sort(key=lambda row: row["step"])
    return TrainingCurve(series.note, tuple(name for name in rows[0] if name != "step"), tuple(rows))


def _prune_figures(found: Pruning) -> dict[str, float]:
    figures = {"loss": float(found.curves.loss.sum() / found.curves.positions.sum())}
    ordered = [(code, value.value) for code, value in zip(found.curves.codes, found.largest, strict=True) if code.order]
    for variant in dict.fromkeys(code.variant for code, _ in ordered):
        own = [(code.order.name, value) for code, value in ordered if code.order and code.variant == variant]
        figures |= {f"{variant}/{name}": value for name, value in own if name != RANDOM}
        shuffled = [value for name, value in own if name == RANDOM]
        if shuffled:
            figures[f"{variant}/random"] = statistics.fmean(shuffled)
        if variant in found.gains:
            gain = found.gains[variant].fraction
            figures |= {f"{variant} gain": gain.value, f"{variant} low": gain.low, f"{variant} high": gain.high}
    return figures


def _steer_figures(found: Steering) -> dict[str, float]:
    figures = {"loss": found.loss}
    for name in dict.fromkeys(edit.direction for edit in found.edits):
        edits = [edit for edit in found.edits if edit.direction == name and edit.requested != 1]
        figures[name] = _median_error([(edit.achieved, edit.requested) for edit in edits if edit.feasible])
        if name in ("elementwise", "saliency", "least_norm"):
            figures[f"{name}.paper"] = _median_error([(edit.predicted, edit.requested) for edit in edits])
    return figures


def _median_error(pairs: list[tuple[float, float]]) -> float:
    from math import inf, log, nan

    errors = [abs(log(got / wanted)) if got > 0 else inf for got, wanted in pairs]
    return statistics.median(errors) if errors else nan
