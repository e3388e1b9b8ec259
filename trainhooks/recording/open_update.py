"""An update whose record is being made, and what a checkpoint holds that is saved in the middle of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from trainhooks.metrics.base import Metric
from trainhooks.recording.reference_states import ReferenceStates
from trainhooks.recording.resume import metric_states


@dataclass(frozen=True)
class Said:
    """What a loop says of an update."""

    loss: Tensor | float | None = None
    learning_rate: float | None = None
    skipped: bool = False


@dataclass(frozen=True)
class OpenUpdate:
    """The recorder as it was before a record, with what the loop said of the update that the record is of.

    A signal's handler may save a checkpoint while `after_update` measures. Parameters have moved then, so the update
    is done; its record is not. The checkpoint gets what was known before, and the run that goes on from it makes the
    record first. Nothing is copied but lists: what metrics and references hold is replaced, not written into.
    """

    said: Said
    recorded: int | None
    learning_rate_sum: float | None
    before: Mapping[str, Tensor | float]
    references: ReferenceStates
    metrics: Sequence[Metric]  # set aside
    controller: dict[str, Any] | None

    def state_dict(self) -> dict[str, Any]:
        """The parts of a recorder's state that the record under way changes, and "unrecorded": what it needs."""
        return {
            "recorded": self.recorded,
            "learning_rate_sum": self.learning_rate_sum,
            "references": self.references.state_dict(),
            "metrics": metric_states(self.metrics),
            "controller": self.controller,
            "unrecorded": {
                "loss": None if self.said.loss is None else float(self.said.loss),
                "learning_rate": self.said.learning_rate,
                "skipped": self.said.skipped,
                "before": {
                    name: value.cpu() if isinstance(value, Tensor) else value for name, value in self.before.items()
                },
            },
        }


def set_aside(metric: Metric) -> Metric:
    """The metric as it is now, while the given one goes on.

    With attributes of its own, their lists and dictionaries too; tensors are shared.
    """
    kept = copy.copy(metric)
    containers = {name: value.copy() for name, value in vars(metric).items() if isinstance(value, list | dict)}
    vars(kept).update(containers)
    return kept
