"""What a record is made of: the followed model, measured at the moments of an update, and what lies between records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from trainhooks.metrics.base import HEADS, Metric, State
from trainhooks.metrics.group_convergence import GROUP_NORMS, sharded_group_norms
from trainhooks.metrics.record_info import record_values
from trainhooks.metrics.shared_sums import want_gram
from trainhooks.model.distributed import full_tensor
from trainhooks.model.movement_check import Mark
from trainhooks.numerics.host import cloned
from trainhooks.numerics.sketch import Sketcher
from trainhooks.recording.label_counts import LabelCounter
from trainhooks.recording.metric_runner import MetricRunner
from trainhooks.recording.open_update import OpenUpdate, Said, set_aside
from trainhooks.recording.pipeline import MOVED, RecordPipeline
from trainhooks.recording.reference_states import ReferenceStates
from trainhooks.recording.timing import Stopwatch
from trainhooks.recording.tracked_model import TrackedModel


class UpdateMeasurement:
    """Measures one model for one run, and sends what it finds.

    `references` are what records compare with, `recorded` is the last record's step, `learning_rate_sum` that of the
    updates since; `before` holds what was measured `before_update` for the record to come.
    """

    def __init__(
        self,
        tracked: TrackedModel,
        *,
        metric_runner: MetricRunner,
        pipeline: RecordPipeline,
        labels: LabelCounter,
        watch: Stopwatch,
        sketcher: Sketcher | None,
    ) -> None:
        self._tracked, self._metric_runner, self._pipeline = tracked, metric_runner, pipeline
        self._labels, self._watch, self._sketcher = labels, watch, sketcher
        self._ranks = tracked.ranks
        self._needs = frozenset[str]().union(*(metric.needs for metric in metric_runner.metrics))
        self._compares_heads = bool(self._needs & HEADS)
        self._mark: Mark | None = None
        self.references = ReferenceStates()
        self.recorded: int | None = None
        self.learning_rate_sum: float | None = None
        self.before: dict[str, Tensor | float] = {}

    def state(self, step: int, *, due: Sequence[Metric] = (), **measured: Tensor | None) -> State:
        """The model after `step` updates, with the references that the metrics `due` ask for."""
        references = self.references.brought(heads=any(metric.needs & HEADS for metric in due))
        return self._tracked.state(step, references=references, learning_rate_sum=self.learning_rate_sum, **measured)

    def begin(self, step: int) -> None:
        """A pass of the model after `step` updates begins; the first one marks the matrix that makes its scores."""
        if (
            self._mark is None
            and not self._ranks.uses_fsdp1
            and self._metric_runner.metrics_due("before_update", step + 1)
        ):
            self._mark = Mark.of(self._tracked.head)

    def observe(self, hidden: Tensor, *, step: int) -> None:
        """Show metrics what has entered the head after `step` updates."""
        self.begin(step)
        self._metric_runner.observe(full_tensor(hidden.detach()), step=step)

    def before_update(self, step: int, *, due: Sequence[Metric]) -> None:
        """Measure what needs gradients, for the record of `step`; nothing where the matrix has moved already.

        Whether it has, a GPU is not asked: then the answer travels with the record, and decides there.
        """
        moved = self._has_moved()
        self.before = {MOVED: moved}
        if not (self._may_ask(moved) and moved):
            state = self.state(step, due=due)
            self.before |= {n: v for m in due for n, v in cloned(self._metric_runner.compute(m, state)).items()}

    def update_done(self) -> None:
        """Parameters have moved: the next pass marks them anew."""
        self._mark = None

    def as_it_is(self, *, said: Said | None = None, rates: float | None = None) -> OpenUpdate:
        """What a checkpoint holds that is saved now; or while an update's record is made, of which the loop has `said`.

        `rates` is `learning_rate_sum` with that update's.
        """
        return OpenUpdate(
            said=said or Said(),
            recorded=self.recorded,
            learning_rate_sum=rates if said else self.learning_rate_sum,
            before=dict(self.before),
            references=replace(self.references),
            metrics=[set_aside(metric) for metric in self._metric_runner.metrics],
            controller=self._metric_runner.state_dict(),
        )

    @torch.no_grad()
    def remember(self) -> None:
        """Take the model in as what later records compare with, without a record."""
        if self._ranks.computes_metrics:
            _, head = self._copy_head(stored=False, compared=self._compares_heads)
            self.references.advance(head=head, sketch=self._tracked.sketch(self._sketcher)[0], needs=self._needs)

    @torch.no_grad()
    def record(self, step: int, *, said: Said) -> None:
        """Measure the model after `step` updates and send the record off; collective where it is sharded."""
        due = self._metric_runner.metrics_due("after_update", step)
        sketch, norms = self._tracked.sketch(self._sketcher) if self._ranks.computes_metrics else (None, None)
        state = self.state(step, due=due, sketch=sketch, label_counts=self._labels.total())
        if self._ranks.sharded:
            norms = sharded_group_norms(self._tracked.groups, ranks=self._ranks)
        if norms is not None:
            state.shared[GROUP_NORMS] = norms
        want_gram(state, any(metric.takes_gram(step) for metric in due))
        snapshot = copy = None
        if self._ranks.computes_metrics:
            stored = self._metric_runner.take_snapshot(step)
            snapshot, copy = self._copy_head(stored=stored, compared=self._will_compare(step))
        before, self.before = self.before, {}
        values = {**record_values(state, **vars(said)), **before}
        for metric in due:
            values |= self._metric_runner.compute(metric, state)
        self.learning_rate_sum = None if self.learning_rate_sum is None else 0.0
        self.recorded = step
        if self._ranks.computes_metrics:
            self._send(state, values, paired=before.keys() - {MOVED}, snapshot=snapshot)
            self.references.advance(head=copy, sketch=sketch, needs=self._needs)

    def _will_compare(self, step: int) -> bool:
        """Whether a later record compares with this one's matrix, as far as it is known.

        Where its place on a device is held either way, it is copied: that is one operation.
        """
        if not self._compares_heads or self._pipeline.stager.has_places:
            return self._compares_heads
        is_first = "initial_head" in self._needs and self.references.initial_head is None
        return is_first or self._metric_runner.may_compare_with(step)

    def _copy_head(self, *, stored: bool, compared: bool) -> tuple[Tensor | None, Tensor | None]:
        pipeline = self._pipeline
        return self._tracked.copy_head(
            pipeline.stager,
            stored=pipeline.staging_plan.stored if stored else None,
            compared=compared,
            by_rows=pipeline.takes_rows,
            taken=pipeline.accepts_records,
        )

    def _send(
        self, state: State, values: dict[str, Tensor | float], *, paired: set[str], snapshot: Tensor | None
    ) -> None:
        lap = {"recorder.milliseconds": np.array(1000 * self._watch.take_lap())}
        known = {**lap, **self._metric_runner.budget_values(self._watch.cost)}
        foreign = self._labels.out_of_vocab
        self._pipeline.send(state, values, known=known, foreign=foreign, snapshot=snapshot, paired=frozenset(paired))

    def _may_ask(self, moved: Tensor) -> bool:
        """Whether the host knows at once, and no other rank waits for this one in what would be left out."""
        return self._ranks.is_single and moved.device.type == "cpu"

    def _has_moved(self) -> Tensor:
        """Whether the matrix is another than in the update's passes: 1 or 0, on every rank that has a share of it."""
        moved = torch.zeros((), dtype=torch.int32) if self._mark is None else self._mark.moved().int()
        return self._ranks.all_reduce_sum(moved) if self._ranks.sharded else moved
