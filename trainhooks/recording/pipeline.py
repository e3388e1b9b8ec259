"""Between measuring and the sinks: what a record holds is sent to the host, and handed on once it is there."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainhooks.metrics.base import State
from trainhooks.metrics.record_info import describe_nonfinite
from trainhooks.numerics.host import PackedResults, pack
from trainhooks.recording.frozen_head import Standstill
from trainhooks.recording.plan import StagingPlan
from trainhooks.recording.sink_group import SinkGroup
from trainhooks.recording.staging import StagedTensor, Stager
from trainhooks.sinks import Record
from trainhooks.sinks.base import read_only

logger = logging.getLogger("trainhooks")

SETTLE_SECONDS = 60.0
SETTLE_SAID_SECONDS = 5.0

MOVED_TEXT = (
    "the output embedding had moved between the forward pass and before_update(): the optimizer steps inside the "
    "backward pass, or before_update() came after the step. What is measured there would pair hidden states and "
    "gradients with another matrix; its values are NaN wherever that is so"
)

Conclude = Callable[..., dict[str, np.ndarray]]
"""What makes the values of the record of `step` of those that have travelled (see `MetricRunner.conclude`)."""

_SKETCH, _FOREIGN = "", " foreign"  # no variables' names: they travel with the values
MOVED = " moved"
"""Among a record's values: whether the matrix had moved when those of `before_update` were measured."""


@dataclass(frozen=True)
class _InFlight:
    """What stays behind of a record while its tensors travel."""

    step: int
    groups: tuple[str, ...]
    packed: PackedResults
    known: Mapping[str, np.ndarray]
    has_counts: bool
    has_snapshot: bool
    rows: tuple[int, int] | None
    paired: frozenset[str]


class RecordPipeline:
    """Sends records over a stager and gives them to the sinks, in order, in the thread that calls `deliver`.

    On the host a record is handed out when it is sent. From a GPU it is once it has arrived: records without a matrix
    travel several together, and nothing waits but `deliver(wait=True)`. A matrix travels as it is stored, bfloat16 in
    2 bytes an element, or in float32 where it is kept for comparison too. `conclude` finishes a record's values on the
    host. What is wrong with a record is said once, with its step, on rank 0 (`first`).
    """

    def __init__(self, sink_group: SinkGroup, *, conclude: Conclude, first: bool, strict: bool = False) -> None:
        self._sink_group, self._conclude, self._first, self._strict = sink_group, conclude, first, strict
        self._warned: set[str] = set()
        self.standstill = Standstill()
        self._staging_plan: StagingPlan | None = None
        self._stager: Stager | None = None

    @property
    def stager(self) -> Stager:
        """The stager of the staging plan that was announced."""
        assert self._stager is not None, "use_device() comes first"
        return self._stager

    @property
    def staging_plan(self) -> StagingPlan:
        """What was announced."""
        assert self._staging_plan is not None, "use_device() comes first"
        return self._staging_plan

    def use_device(self, staging_plan: StagingPlan) -> None:
        """Use the stager that this staging plan needs; what is on its way arrives first."""
        self._flush()
        self._staging_plan, self._stager = staging_plan, staging_plan.stager()

    @property
    def takes_rows(self) -> bool:
        """Whether each rank stores its own rows of a sharded head."""
        return self._sink_group.rows is not None

    @property
    def accepts_records(self) -> bool:
        """Whether anybody on this rank takes records."""
        return self._sink_group.accepts_records

    def send(
        self,
        state: State,
        values: Mapping[str, Tensor | float],
        *,
        known: Mapping[str, np.ndarray],
        foreign: Tensor | None,
        snapshot: Tensor | None,
        paired: frozenset[str] = frozenset(),
    ) -> None:
        """Send a record off: a state's `values`, sketch and label counts, with what is `known` on the host already.

        `foreign` counts labels beyond the vocabulary; `snapshot` is what `copy_head` gave to be stored. `paired` are
        the values that are void where `MOVED` is not 0. Nothing moves on a rank whose records nobody takes.
        """
        if not self._sink_group.accepts_records:
            return
        extra = {_SKETCH: state.sketch, _FOREIGN: foreign}
        packed = pack({**values, **{name: tensor for name, tensor in extra.items() if tensor is not None}})
        counts, rows = state.label_counts, self._sink_group.rows
        staged: list[StagedTensor] = [] if packed.flat is None else [(packed.flat, packed.flat.dtype)]
        staged += [] if counts is None else [(counts, counts.dtype)]
        staged += [] if snapshot is None else [(snapshot, self.staging_plan.stored)]
        sent = _InFlight(
            step=state.step,
            groups=tuple(state.groups),
            packed=packed,
            known=known,
            has_counts=counts is not None,
            has_snapshot=snapshot is not None,
            rows=None if rows is None else rows.rows,
            paired=paired,
        )
        large = packed.flat is not None and packed.flat.nbytes > self.staging_plan.record
        self.stager.stage(staged, note=sent, at_once=large or snapshot is not None)

    def deliver(self, *, wait: bool = False) -> None:
        """Give the sinks what has arrived; `wait` for all that was sent. Raises what a sink does."""
        if self._stager is not None:
            for sent, tensors in self._stager.completed(wait=wait):
                self._deliver(*self._arrived(sent, tensors))

    def settle(self, *, step: int) -> None:
        """Before a checkpoint at `step`: what was sent arrives, and is durable; said where that takes long.

        Raises what a sink does when it is given a record, and nothing else: a checkpoint never fails for a slow disk.
        """
        self.deliver(wait=True)
        begin = time.monotonic()
        settled, waited = self._sink_group.settle(seconds=SETTLE_SECONDS), time.monotonic() - begin
        if not settled:
            durable = self._sink_group.durable_step
            text = (
                f"the checkpoint is ahead of the store, which holds records up to step {durable} after {waited:.0f} s. "
                "A run that is killed before the others are durable goes on with a gap that the store names"
            )
            self._warn_once("settle", text, step=step)
        elif waited > SETTLE_SAID_SECONDS:
            logger.warning("step %d: the checkpoint waited %.0f s until the store had its records", step, waited)

    def finish(self, *, step: int, wait_seconds: float) -> None:
        """The run has ended at `step`: everything arrives, and the sinks get what needed the last record."""
        self._flush()
        if self._first:
            if not self._sink_group.wait(seconds=wait_seconds):
                text = "other ranks have not written their rows of all records; those are left out"
                self._warn_once("pieces", text, step=step)
            self._sink_group.finish()

    def _flush(self) -> None:
        """Nothing is on its way any more, and what the stager has cost the loop is said."""
        self.deliver(wait=True)
        if self._stager is not None and self._stager.waits:
            logger.info("the loop waited %d times for records on their way from the device", self._stager.waits)

    def _arrived(self, sent: _InFlight, tensors: list[Tensor]) -> tuple[Record, int]:
        """The record, and how many labels of this rank so far were none of the vocabulary."""
        here = iter(tensors)
        values = sent.packed.unpack(None if sent.packed.flat is None else next(here))
        sketch = values.pop(_SKETCH, None)
        foreign = int(values.pop(_FOREIGN, np.zeros(())))
        if values.pop(MOVED, 0):
            values = {name: value for name, value in values.items() if name not in sent.paired}
            self._warn_once("moved", MOVED_TEXT, step=sent.step)
        values = self._as_declared(self._conclude(values, step=sent.step), step=sent.step)
        arrays = {"sketch": sketch.astype(np.float32)} if sketch is not None else {}
        arrays |= {"label_counts": next(here).numpy()} if sent.has_counts else {}
        arrays |= {"snapshot": _stored(next(here))} if sent.has_snapshot else {}
        known = read_only({**values, **sent.known})
        read_only(arrays)
        record = Record(
            step=sent.step,
            values=known,
            groups=sent.groups,
            rows=sent.rows,
            labels=self._sink_group.labels,
            sketch=arrays.get("sketch"),
            label_counts=arrays.get("label_counts"),
            snapshot=arrays.get("snapshot"),
        )
        return record, foreign

    def _as_declared(self, values: Mapping[str, np.ndarray], *, step: int) -> dict[str, np.ndarray]:
        """The values that a variable declares, in its shape; others are left out, said once, or raised (`strict`)."""
        shapes, kept = self._sink_group.shapes, dict(values)
        for name, value in values.items():
            if shapes.get(name) == np.shape(value) or not self._first:
                continue
            needed = f"shape {list(shapes[name])}" if name in shapes else "a variable of this name: none declares it"
            text = f"a metric returned {name!r} of shape {list(np.shape(value))}; needed {needed}. It is left out"
            if self._strict:
                raise ValueError(f"step {step}: {text.removesuffix('. It is left out')}.")
            self._warn_once(f"value {name}", text, step=step)
            del kept[name]
        return kept

    def _deliver(self, record: Record, foreign: int) -> None:
        self._sink_group.write(record)
        if weights := describe_nonfinite(record.values, sketch=record.sketch, groups=list(record.groups)):
            text = f"weights are not finite: {weights}. They are recorded as they are"
            self._warn_once("nonfinite", text, step=record.step)
        if still := self.standstill.look(record):
            self._warn_once("standstill", still, step=record.step)
        if foreign:
            text = f"labels beyond the {self.staging_plan.vocab} rows of the output embedding; not counted"
            self._warn_once("labels", text, step=record.step)

    def _warn_once(self, kind: str, text: str, *, step: int) -> None:
        if kind not in self._warned and self._first:
            self._warned.add(kind)
            warnings.warn(f"step {step}: {text} (said once).", RuntimeWarning, stacklevel=7)


def _stored(matrix: Tensor) -> np.ndarray:
    """The matrix as the store takes it; numpy has no bfloat16, so its bits."""
    array: np.ndarray = (matrix.view(torch.uint16) if matrix.dtype == torch.bfloat16 else matrix).numpy()
    return array
