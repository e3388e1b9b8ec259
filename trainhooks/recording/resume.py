"""Going on where a checkpoint was saved: what metrics hand over, and whether checkpoint and store belong together."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from trainhooks.metrics.base import Metric
from trainhooks.store import Store, open_store


@dataclass(frozen=True)
class ResumePoint:
    """A run that goes on after `step` updates; `recorded` is the last record that its checkpoint knew, if any.

    `sketch` [group, sketch] is that record's, by which the run is known again in its store, and `first` is that of
    step 0; None: it is not known.
    """

    step: int
    recorded: int | None
    sketch: np.ndarray | None = field(default=None, repr=False, compare=False)
    first: np.ndarray | None = field(default=None, repr=False, compare=False)

    @staticmethod
    def of(state: Mapping[str, Any]) -> ResumePoint | None:
        """What a recorder's state says; None where it was saved before record 0: there is nothing to go on from."""
        if not state.get("begun", True):
            return None
        redone = 1 if state.get("unrecorded") else 0  # its record, should it be there already, is made again
        references = state.get("references", {})
        known, first = (_on_host(references.get(name)) for name in ("previous_sketch", "initial_sketch"))
        return ResumePoint(step=int(state["step"]) - redone, recorded=state.get("recorded"), sketch=known, first=first)


def _on_host(sketch: Tensor | None) -> np.ndarray | None:
    return None if sketch is None else sketch.detach().cpu().numpy().astype(np.float32)


def offered(state: Mapping[str, Any], *, begun: bool) -> dict[str, Any]:
    """A recorder's state as a checkpoint gets it: with "whole", the same once more as one value.

    torch's distributed checkpoints read into what a fresh object offers, name by name inside dictionaries, and take a
    tuple as one value. What a fresh recorder cannot know (which tensors there will be) it does not offer by name.
    """
    if begun:
        return {**state, "whole": (dict(state),)}
    unknown = {"label_counts", "references", "controller", "unrecorded"}
    return {**{name: value for name, value in state.items() if name not in unknown}, "whole": ()}


def as_saved(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state that `offered` was given; others, of before it was there, as they are."""
    whole: Sequence[Mapping[str, Any]] = state.get("whole", ())
    return whole[0] if whole else state


def opening_mode(restart: ResumePoint | None, *, mode: str, path: str | Path, exists: bool) -> str:
    """How to open the store at `path`: `mode`, but "create" where the run goes on and its store is gone, said once.

    Raises ValueError where a store is to be resumed and nothing says where; where it is another run's.
    """
    if restart is None:
        if mode == "resume":
            there = "" if exists else f"no store at {path}, and "
            raise ValueError(
                f'{there}mode="resume" needs to know where: call load_state_dict() with the checkpoint\'s recorder '
                'state first, or pass mode="overwrite" to start anew.'
            )
        return mode
    if not exists:
        warnings.warn(
            f"the run goes on after step {restart.step}, and there is no store at {path}: a new one begins there, with "
            f"records from step {restart.step + 1} on. Earlier ones are in the store that the run had before, if any.",
            RuntimeWarning,
            stacklevel=2,
        )
        return "create"
    if mode == "resume":
        _check_store(restart, path=path)
    return mode


def _check_store(restart: ResumePoint, *, path: str | Path) -> None:
    """Warn where the checkpoint is ahead of the store: the records between the two are missing.

    Raises ValueError where the record that both know is not the same: the store is another run's.
    """
    if restart.recorded is None:
        return
    store = open_store(path)
    steps = store.steps
    last = int(steps[-1]) if len(steps) else None
    if last is None or last < restart.recorded:
        _check_is_behind(restart, store, last=last, path=path)
        return
    if restart.sketch is not None and not _has_record(store, restart.recorded, sketch=restart.sketch):
        raise ValueError(
            f"{path} is another run's store: its weights at step {restart.recorded} are not those that the checkpoint "
            f"of step {restart.step} had recorded there. Name the store that belongs to the checkpoint, or a path "
            "where there is none: a new one begins there."
        )


def _check_is_behind(restart: ResumePoint, store: Store, *, last: int | None, path: str | Path) -> None:
    """Warn where the store of a run that was killed ends before its checkpoint. Raises ValueError for another store."""
    # a store that was closed lost nothing by a kill, and one with another first record is another run's
    ended = store.complete and not store.dropped
    if ended or not (restart.first is None or _has_record(store, 0, sketch=restart.first)):
        raise ValueError(
            f"the checkpoint had recorded up to step {restart.recorded}; {path} ends at step {last}. Name the store "
            "that belongs to the checkpoint, or a path where there is none: a new one begins there."
        )
    warnings.warn(
        f"the checkpoint had recorded up to step {restart.recorded}; {path} ends at step {last}: what lies between was "
        "not durable when the run was killed. The run goes on, with a gap that the store names (`trainhooks inspect`).",
        RuntimeWarning,
        stacklevel=2,
    )


def _has_record(store: Store, step: int, *, sketch: np.ndarray) -> bool:
    """Whether the store's record of `step` has this sketch, bit for bit; where it has none to compare, it may be."""
    row = int(np.searchsorted(store.steps, step))
    if store.sketch_size != sketch.shape[-1] or row >= len(store.steps) or store.steps[row] != step:
        return True
    for part in store.sketch_parts():
        if row < len(part):
            kept = part[row]
            return np.isnan(kept).all() or np.array_equal(kept, sketch, equal_nan=True)
        row -= len(part)
    return True


def metric_states(metrics: Sequence[Metric]) -> list[tuple[str, dict[str, Any]]]:
    """The state of each metric under its class' name, in their order."""
    return [(type(metric).__name__, metric.state_dict()) for metric in metrics]


def load_metric_states(metrics: Sequence[Metric], state: Mapping[str, Any]) -> None:
    """Give each metric its state back, by its class' name; those that the state has nothing of start anew, said once.

    A state whose "metrics" are None knows of none: then nothing is said. Raises ValueError where it was saved with a
    metric that is not here.
    """
    saved = [(kind, own) for kind, own in (state.get("metrics", ()) or ())]
    anew = [metric for metric in metrics if not _restored(metric, saved)]
    if saved_of := [kind for kind, _ in saved]:
        raise ValueError(
            f"the state was saved with the metrics {saved_of} as well, this recorder has "
            f"{[type(metric).__name__ for metric in metrics]}: go on with the same ones."
        )
    forgetful = [type(metric).__name__ for metric in anew if metric.state_dict()]
    if forgetful and state.get("metrics", ()) is not None:
        warnings.warn(
            f"the state of step {state['step']} holds nothing of {', '.join(forgetful)}: they start anew, and what "
            "they compare with earlier records is NaN at first.",
            RuntimeWarning,
            stacklevel=3,
        )


def _restored(metric: Metric, saved: list[tuple[str, dict[str, Any]]]) -> bool:
    """Whether `saved` had a state of this metric, which is taken out of it and given back."""
    found = next((entry for entry in saved if entry[0] == type(metric).__name__), None)
    if found is None:
        return False
    saved.remove(found)
    if found[1]:
        metric.load_state_dict(found[1])
    return bool(found[1])
