"""What a record is made of: the followed model, measured at the moments of an update, and what lies between records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from trainhooks.metrics.base import HEADS, Metric, State
from trainhooks.metrics.group_convergence import GROUP_NORMS, sharded_group_norms
from trainhooks.metrics.record_info import own_values
from trainhooks.model.distributed import whole
from trainhooks.model.movement_check import Mark
from trainhooks.numerics.host import as_now
from trainhooks.numerics.sketch import Sketcher
from trainhooks.recording.label_counts import LabelTally
from trainhooks.recording.metric_runner import Timetable
from trainhooks.recording.open_update import Said, UnderWay, set_aside
from trainhooks.recording.pipeline import MOVED, Dispatch
from trainhooks.recording.reference_states import References
from trainhooks.recording.timing import Stopwatch
from trainhooks.recording.tracked_model import Followed


class Measuring:
    """Measures one model for one run, and sends what it finds.

    `references` are what records compare with, `recorded` is the last record's step, `learning_rate_sum` that of the
    updates since; `before` holds what was measured `before_update` for the record to come.
    """

    def __init__(
        self,
        followed: Followed,
        *,
        timetable: Timetable,
        dispatch: Dispatch,
        labels: LabelTally,
        watch: Stopwatch,
        sketcher: Sketcher | None,
    ) -> None:
        self._followed, self._timetable, self._dispatch = followed, timetable, dispatch
        self._labels, self._watch, self._sketcher = labels, watch, sketcher
        self._ranks = followed.ranks
        self._needs = frozenset[str]().union(*(metric.needs for metric in timetable.metrics))
        self._compares_heads = bool(self._needs & HEADS)
        self._mark: Mark | None = None
        self.references = References()
        self.recorded: int | None = None
        self.learning_rate_sum: float | None = None
        self.before: dict[str, Tensor | float] = {}

    def state(self, step: int, *, due: Sequence[Metric] = (), **measured: Tensor | None) -> State:
        """The model after `step` updates, with the references that the metrics `due` ask for."""
        references = self.references.brought(heads=any(metric.needs & HEADS for metric in due))
        return self._followed.state(step, references=references, learning_rate_sum=self.learning_rate_sum, **measured)

    def begin(self, step: int) -> None:
        """A pass of the model after `step` updates begins; the first one marks the matrix that makes its scores."""
        if self._mark is None and not self._ranks.flat and self._timetable.metrics_due("before_update", step + 1):
            self._mark = Mark.of(self._followed.head)

    def observe(self, hidden: Tensor, *, step: int) -> None:
        """Show metrics what has entered the head after `step` updates."""
        self.begin(step)
        self._timetable.observe(whole(hidden.detach()), step=step)

    def before_update(self, step: int, *, due: Sequence[Metric]) -> None:
        """Measure what needs gradients, for the record of `step`; nothing where the matrix has moved already.

        Whether it has, a GPU is not asked: then the answer travels with the record, and decides there.
        """
        moved = self._has_moved()
        self.before = {MOVED: moved}
        if not (self._may_ask(moved) and moved):
            state = self.state(step, due=due)
            self.before |= {n: v for m in due for n, v in as_now(self._timetable.compute(m, state)).items()}

    def update_done(self) -> None:
        """Parameters have moved: the next pass marks them anew."""
        self._mark = None

    def as_it_is(self, *, said: Said | None = None, rates: float | None = None) -> UnderWay:
        """What a checkpoint holds that is saved now; or while an update's record is made, of which the loop has `said`.

        `rates` is `learning_rate_sum` with that update's.
        """
        return UnderWay(
            said=said or Said(),
            recorded=self.recorded,
            learning_rate_sum=rates if said else self.learning_rate_sum,
            before=dict(self.before),
            references=replace(self.references),
            metrics=[set_aside(metric) for metric in self._timetable.metrics],
            thinning=self._timetable.state_dict(),
        )

    @torch.no_grad()
    def remember(self) -> None:
        """Take the model in as what later records compare with, without a record."""
        if self._ranks.measures:
            _, head = self._dispatch.copies(self._followed, stored=False, compared=self._compares_heads)
            self.references.advance(head=head, sketch=self._followed.sketch(self._sketcher), needs=self._needs)

    @torch.no_grad()
    def record(self, step: int, *, said: Said) -> None:
        """Measure the model after `step` updates and send the record off; collective where it is sharded."""
        due = self._timetable.metrics_due("after_update", step)
        sketch = self._followed.sketch(self._sketcher) if self._ranks.measures else None
        state = self.state(step, due=due, sketch=sketch, label_counts=self._labels.total())
        if self._ranks.sharded:
            state.shared[GROUP_NORMS] = sharded_group_norms(self._followed.groups, ranks=self._ranks)
        snapshot = copy = None
        if self._ranks.measures:
            stored = self._timetable.take_snapshot(step)
            snapshot, copy = self._dispatch.copies(self._followed, stored=stored, compared=self._compares_heads)
        before, self.before = self.before, {}
        values = {**own_values(state, **vars(said)), **before}
        for metric in due:
            values |= self._timetable.compute(metric, state)
        self.learning_rate_sum = None if self.learning_rate_sum is None else 0.0
        self.recorded = step
        if self._ranks.measures:
            self._send(state, values, paired=before.keys() - {MOVED}, snapshot=snapshot)
            self.references.advance(head=copy, sketch=sketch, needs=self._needs)

    def _send(
        self, state: State, values: dict[str, Tensor | float], *, paired: set[str], snapshot: Tensor | None
    ) -> None:
        lap = {"recorder.milliseconds": np.array(1000 * self._watch.take_lap())}
        known = {**lap, **self._timetable.budget_values(self._watch.cost)}
        foreign = self._labels.foreign
        self._dispatch.send(state, values, known=known, foreign=foreign, snapshot=snapshot, paired=frozenset(paired))

    def _may_ask(self, moved: Tensor) -> bool:
        """Whether the host knows at once, and no other rank waits for this one in what would be left out."""
        return self._ranks.alone and moved.device.type == "cpu"

    def _has_moved(self) -> Tensor:
        """Whether the matrix is another than in the update's passes: 1 or 0, on every rank that has a share of it."""
        moved = torch.zeros((), dtype=torch.int32) if self._mark is None else self._mark.moved().int()
        return self._ranks.sum(moved) if self._ranks.sharded else moved
