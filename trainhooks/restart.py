"""Going on where a checkpoint was saved: what metrics hand over, and whether checkpoint and store belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainhooks.metrics.base import Metric
from trainhooks.store import open_store


@dataclass(frozen=True)
class Restart:
    """A run that goes on after `step` updates; `recorded` is the last record that its checkpoint knew, if any."""

    step: int
    recorded: int | None

    @staticmethod
    def of(state: Mapping[str, Any]) -> Restart | None:
        """What a recorder's state says; None where it was saved before record 0: there is nothing to go on from."""
        if not state.get("begun", True):
            return None
        return Restart(step=int(state["step"]), recorded=state.get("recorded"))


def check_state_given(restart: Restart | None, *, mode: str) -> None:
    """Raise ValueError where a store is to be resumed and nothing says where."""
    if mode == "resume" and restart is None:
        raise ValueError(
            'mode="resume" needs to know where: call load_state_dict() with the checkpoint\'s recorder '
            'state first, or pass mode="overwrite" to start anew.'
        )


def check_store(restart: Restart | None, *, path: str | Path) -> None:
    """Raise ValueError where the checkpoint is ahead of the store: the records between the two would be missing."""
    if restart is None or restart.recorded is None:
        return
    steps = open_store(path).steps
    last = int(steps[-1]) if len(steps) else None
    if last is None or last < restart.recorded:
        raise ValueError(
            f"the checkpoint had recorded up to step {restart.recorded}; {path} ends at step "
            f'{last}. Name the store that belongs to the checkpoint, or begin a new one with mode="create".'
        )


def metric_states(metrics: Sequence[Metric]) -> list[tuple[str, dict[str, Any]]]:
    """The state of each metric under its class' name, in their order."""
    return [(type(metric).__name__, metric.state_dict()) for metric in metrics]


def load_metric_states(metrics: Sequence[Metric], state: Mapping[str, Any]) -> None:
    """Give each metric its state back, where a recorder's state has any.

    Raises ValueError where the state was saved with other metrics, or in another order.
    """
    kinds = [type(metric).__name__ for metric in metrics]
    saved = list(state.get("metrics", zip(kinds, ({} for _ in kinds), strict=True)))
    if [kind for kind, _ in saved] != kinds:
        raise ValueError(
            f"the state was saved with the metrics {[kind for kind, _ in saved]}, this recorder has {kinds}: "
            "go on with the same ones."
        )
    for metric, (_, own) in zip(metrics, saved, strict=True):
        metric.load_state_dict(own)
