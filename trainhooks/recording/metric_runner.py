"""What is due at which step: by the schedules, less what a budget leaves out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
from torch import Tensor

from trainhooks.core.schedule import EveryStep, Schedule, Thinned, Union, is_foreseen
from trainhooks.core.variable import Variable
from trainhooks.metrics.base import Metric, State
from trainhooks.model.distributed import Announcement, RankGroup
from trainhooks.recording.budget import REVIEW_STEPS, Budget, BudgetController, budget_variables
from trainhooks.recording.metric_failures import Faults
from trainhooks.recording.timing import Cost, Stopwatch

logger = logging.getLogger("trainhooks")

LOOK_AHEAD = 16  # steps


class MetricRunner:
    """Says of each step which metrics are due, and whether a snapshot is.

    `schedule` holds for metrics that have none of their own (None: every step), and for snapshots where
    `snapshot_schedule` is None; a `Thinned` one is among its steps, in a run of `total_steps` updates (None: unknown).
    `budget` is the share of the loop's time that recording may take, None for any. What is due depends on steps and on
    what rank 0 says in `review`, so all ranks agree.
    """

    def __init__(
        self,
        metrics: Sequence[Metric],
        *,
        schedule: Schedule | None,
        snapshot_schedule: Schedule | None,
        budget: float | Budget | None,
        ranks: RankGroup,
        faults: Faults,
        total_steps: int | None = None,
    ) -> None:
        self.metrics = list(metrics)
        self._faults = faults
        self._ranks = ranks
        self._schedule = EveryStep() if schedule is None else schedule
        self._snapshot_schedule = snapshot_schedule or self._schedule
        own = [metric.schedule for metric in metrics]
        asking = (when for when in own if when is not None and not isinstance(when, Thinned))
        self._records = Union((self._schedule, self._snapshot_schedule, *asking))
        self._own = [
            when.within(self._schedule, last=total_steps) if isinstance(when, Thinned) else when for when in own
        ]
        parts = [*(type(metric).__name__ for metric in metrics), "snapshots"]
        budget = budget if budget is None or isinstance(budget, Budget) else Budget(budget)
        self._controller = None if budget is None else BudgetController(budget, parts=parts)
        self._decided: Announcement | None = None  # what rank 0 said at the last review

    @property
    def schedules(self) -> dict[str, Schedule]:
        """By what they are of: "records", "snapshots", and each metric that has its own."""
        own = {type(m).__name__: when for m, when in zip(self.metrics, self._own, strict=True) if when is not None}
        return {"records": self._records, **own, "snapshots": self._snapshot_schedule}

    def agree(self, first: int, **more: object) -> None:
        """Check that all ranks have this metric runner from step `first` on, and what `more` names (collective).

        Schedules are compared by when they fire. Raises ValueError where ranks differ: they would wait for each other.
        """
        if self._ranks.is_single:
            return
        steps = [*range(first, first + 512), *(1000 * n for n in range(first // 1000, first // 1000 + 64))]
        metrics = [(type(m).__name__, m.moment, sorted(m.needs), [v.name for v in m.variables]) for m in self.metrics]
        thinned = None if self._controller is None else (self._controller.budget, self._controller.state_dict())
        schedules = {what: [step for step in steps if fires(step)] for what, fires in self.schedules.items()}
        self._ranks.check_same({"steps": first, "metrics": metrics, "schedules": schedules, "budgets": thinned, **more})

    def record_due(self, step: int) -> bool:
        """Whether there is a record of `step`: something is scheduled."""
        return self._records(step)

    def metrics_due(self, moment: str, step: int) -> list[Metric]:
        """What this rank computes of the record of `step` at a moment; what all ranks observe, all of them compute."""
        here = [m for m in self.metrics if m.moment == moment and (self._ranks.computes_metrics or "hidden" in m.needs)]
        return [metric for metric in here if self._is_due(metric, step)]

    def may_compare_with(self, step: int) -> bool:
        """Whether the record after that of `step` may ask for its output embedding, as far as schedules foresee it.

        Where a budget changes them, one is of the user's own, or the next record lies far off: yes.
        """
        asking = [part for part, metric in enumerate(self.metrics) if "previous_head" in metric.needs]
        whens = [self._own[part] or self._schedule for part in asking]
        if self._controller is not None or not all(map(is_foreseen, [self._records, *whens])):
            return True
        following = next(filter(self._records, range(step + 1, step + 1 + LOOK_AHEAD)), None)
        return following is None or any(when(following) for when in whens)

    def observe(self, hidden: Tensor, *, step: int) -> None:
        """Show what entered the head after `step` updates to the metrics whose next record is due."""
        for metric in self.metrics:
            if "hidden" in metric.needs and self._is_due(metric, step + 1):
                with self._faults.of(metric, step=step + 1):
                    metric.observe(hidden, step=step)

    def forget(self, *, last_pass: bool) -> None:
        """What metrics have observed since the last update does not count; of the last pass alone it stays."""
        for metric in self.metrics if not last_pass else ():
            metric.forget()

    def compute(self, metric: Metric, state: State) -> Mapping[str, Tensor | float]:
        """The metric's values of a state, to be concluded on the host; its time is noted for the budget.

        None where it raises.
        """
        with self._faults.of(metric, step=state.step):
            if self._controller is None:
                return metric.enqueue(state)
            with self._controller.taking(self.metrics.index(metric), state.step):
                return metric.enqueue(state)
        return {}

    def conclude(self, values: dict[str, np.ndarray], *, step: int = 0) -> dict[str, np.ndarray]:
        """The values of the record of `step` on the host, each metric's last part done, within the budget too."""
        for part, metric in enumerate(self.metrics):
            timing = nullcontext() if self._controller is None else self._controller.timing(part)
            with self._faults.of(metric, step=step), timing:
                values = dict(metric.conclude(values))
        return values

    def take_snapshot(self, step: int) -> bool:
        """Whether a snapshot is due at `step`; if so it counts as taken."""
        if self._controller is None or not self._snapshot_schedule(step):
            return self._snapshot_schedule(step)
        part = len(self.metrics)
        if not self._controller.allows(part, step):
            return False
        with self._controller.taking(part, step):
            return True

    def review(self, step: int, *, watch: Stopwatch) -> None:
        """Thin what is too dear, at steps that all ranks know; it holds from the next one on.

        Several ranks hear at one review what rank 0 decided at the review before: no rank waits for another, and none
        looks at a clock of its own.
        """
        if self._controller is None or step % REVIEW_STEPS:
            return
        decided, self._decided = self._decided, None
        excess = self._controller.over_budget_part(watch.cost) if self._ranks.is_rank0 else None
        if decided is None:
            decided = self._ranks.broadcast_async(-1 if excess is None else excess)
            if not self._ranks.is_single:
                self._decided = decided
                return
        # else the excess counts for nothing: the ranks were hearing of it meanwhile, and the look began a new lap
        if (part := decided.read()) >= 0:
            self._controller.back_off(part)
            what, spacing = self._controller.parts[part], self._controller.spacing[part]
            logger.info("step %d: over budget; %s every %d updates at most from here", step, what, spacing)

    @property
    def variables(self) -> tuple[Variable, ...]:
        """What may be in a record: what it says of the budget, where there is one, and what the metrics declare."""
        budget = () if self._controller is None else budget_variables(self._controller.parts)
        return (*budget, *(variable for metric in self.metrics for variable in metric.variables))

    def budget_values(self, cost: Cost) -> dict[str, np.ndarray]:
        """What a record says of the budget, given the cost so far; nothing where there is none."""
        if self._controller is None:
            return {}
        spacing = np.array(self._controller.spacing, dtype=np.float64)
        return {"recorder.share": np.array(cost.fraction), "recorder.spacing": spacing}

    def state_dict(self) -> dict[str, Any] | None:
        """What has been thinned, for a run that goes on; None without a budget."""
        return None if self._controller is None else self._controller.state_dict()

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Take back what `state_dict` gave; without a budget on both sides nothing is.

        Raises ValueError where it was saved with other metrics.
        """
        if self._controller is not None and state is not None:
            self._controller.load_state_dict(state)

    def _is_due(self, metric: Metric, step: int) -> bool:
        part = self.metrics.index(metric)
        scheduled = not self._faults.has(metric) and (self._own[part] or self._schedule)(step)
        return scheduled and (self._controller is None or self._controller.allows(part, step))
