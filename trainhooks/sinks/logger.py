"""A logger that the loop has already, by the function that it logs with."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

from trainhooks.sinks.base import Record, Sink
from trainhooks.sinks.host_tags import PREFIX, host_scalars

STEP = PREFIX + "step"
"""The record's step beside its numbers, for loggers that have a step of their own."""


class LoggerSink(Sink):
    """Calls `log(numbers, step=t)` for each record, as wandb, trackio, MLflow, accelerate and Fabric have it.

    `numbers` holds the record's finite scalars as `trainhooks/family/quantity`, and `trainhooks/step`; not the loop's
    own loss and learning rate, vectors along the vocabulary, or what is known only when the run ends. It is called in
    order of steps, on rank 0, from the loop's thread; from a GPU a few updates later. A logger that refuses a step
    behind its own takes the step as a value: `LoggerSink(lambda numbers, step: run.log(numbers))`.

    What `log` raises is said once, with the step, and training goes on. A run that goes on logs on: what the logger
    has of its former end is the logger's to cut. Raises TypeError for what cannot be called.

    >>> import numpy as np
    >>> seen = []
    >>> sink = LoggerSink(lambda numbers, step: seen.append((step, numbers)))
    >>> sink.write(Record(3, {"loss": np.array(2.5), "probe.heldout_r2": np.array(0.5)}))
    >>> seen
    [(3, {'trainhooks/probe/heldout_r2': 0.5, 'trainhooks/step': 3})]
    """

    def __init__(self, log: Any) -> None:
        if not callable(log):
            raise TypeError(f"LoggerSink takes a function log(numbers, step=t), such as trackio.log; got {log!r}.")
        self._log: Callable[..., object] = log
        self._has_failed = False

    def write(self, record: Record) -> None:
        """Log the record's numbers."""
        numbers = {tag: number for tag, number in host_scalars(record).items() if math.isfinite(number)}
        try:
            self._log({**numbers, STEP: record.step}, step=record.step)
        except Exception as error:
            self._say(error, step=record.step)

    def _say(self, error: Exception, *, step: int) -> None:
        if self._has_failed:
            return
        self._has_failed = True
        warnings.warn(
            f"step {step}: the logger raised {type(error).__name__}: {error}. Training and the other sinks go on, and "
            "later records are offered to it again (said once).",
            RuntimeWarning,
            stacklevel=2,
        )
