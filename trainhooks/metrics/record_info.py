"""What a recorder says of a record by itself, whatever its metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from trainhooks.core.variable import Variable
from trainhooks.metrics.base import State
from trainhooks.metrics.group_convergence import GROUP_NORMS
from trainhooks.model.distributed import full_tensor, is_sharded

RECORD_VARIABLES = (
    Variable("skipped", description="1 where the update was skipped (a scaler met an overflow), else 0"),
    Variable("loss", unit="nat", description="training loss of the update that led here, as the loop gave it"),
    Variable("learning_rate", description="learning rate of the update that led here, as the loop gave it"),
    Variable("nonfinite_rows", description="rows of the output embedding that hold NaN or inf"),
    Variable("recorder.milliseconds", unit="ms", description="time spent in the recorder since the last record"),
)


def _distinct(parts: Sequence[str]) -> list[str]:
    """The parts' names, numbered where several metrics are of one class."""
    return [part if parts.count(part) == 1 else f"{part}.{list(parts[:i]).count(part)}" for i, part in enumerate(parts)]


def record_values(
    state: State, *, loss: Tensor | float | None, learning_rate: float | None, skipped: bool
) -> dict[str, Tensor | float]:
    """The values of `RECORD_VARIABLES` but the time; what the loop did not give is left out."""
    values: dict[str, Tensor | float] = {"skipped": float(skipped)}
    values["nonfinite_rows"] = 0.0 if _is_known_finite(state) else _nonfinite_rows(state)
    if loss is not None:
        values["loss"] = loss.detach().squeeze() if isinstance(loss, Tensor) else loss
    return values if learning_rate is None else {**values, "learning_rate": learning_rate}


def _is_known_finite(state: State) -> bool:
    """Whether the norm of all parameters says so already, on the host, where looking at it waits for nothing."""
    norms, weight = state.shared.get(GROUP_NORMS), state.head.weight
    if norms is None or norms.device.type != "cpu" or state.head.adapted or is_sharded(weight):
        return False
    of_all = list(state.groups).index("whole")
    return any(weight is parameter for parameter in state.groups["whole"]) and math.isfinite(norms[of_all])


def _nonfinite_rows(state: State) -> Tensor:
    # both let NaN through, which no number is beyond; sums would read the head as float64, eight times as slow
    rows = state.output_embedding if state.head.adapted else state.head.matrix
    finite = (full_tensor(rows.amax(dim=1)) < torch.inf).logical_and_(full_tensor(rows.amin(dim=1)) > -torch.inf)
    return (~finite).sum()  # of a sharded head only these are gathered


def describe_nonfinite(values: Mapping[str, np.ndarray], *, sketch: np.ndarray | None, groups: list[str]) -> str:
    """Which weights of a record on the host hold NaN or inf, in words; empty where all are finite.

    `sketch` [group, sketch] tells it of the `groups`.
    """
    rows = int(values["nonfinite_rows"])
    bad = [] if sketch is None else [g for g, sums in zip(groups, sketch, strict=True) if not np.isfinite(sums).all()]
    parts = [f"{rows} rows of the output embedding"] if rows else []
    parts += [f"parameter groups {', '.join(bad)}"] if bad else []
    return " and ".join(parts)
