"""What recording may cost, and what is done less often where it costs more."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from typing import Any

from trainhooks.core.variable import Variable
from trainhooks.metrics.record_info import _distinct
from trainhooks.recording.timing import Cost

REVIEW_STEPS = 20
"""Updates between two looks at the budget: all ranks look at the same steps, whatever their clocks say."""


@dataclass(frozen=True)
class Budget:
    """The share of the loop's own time that recording may take, 0.02 for 2 %, and what may be left out for it.

    Metrics are computed less often first, the dearest one at a time, its spacing doubled; snapshots only with
    `thin_snapshots`, where metrics cost next to nothing any more. Raises ValueError for a share that is
    not above 0, or above 1.

    >>> Budget(0.02, thin_snapshots=True)
    Budget(share=0.02, thin_snapshots=True)
    """

    share: float
    thin_snapshots: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.share, bool) or not isinstance(self.share, Real) or not 0 < self.share <= 1:
            raise ValueError(
                f"a budget of {self.share!r}: give a share of the loop's time above 0 and up to 1, such as 0.02."
            )


class BudgetController:
    """Keeps the recorder's cost within a budget by the spacing of its parts: the metrics, then the snapshots.

    `parts` names them, the snapshots last. `spacing` is by part the least number of updates between two times, 0 where
    the schedule alone decides. `allows` depends on the steps taken and on `thin` alone, so ranks that call the same
    agree. Parts' seconds are those of the training thread; on a GPU, where it only launches them, the device's time is
    shared out in proportion.
    """

    def __init__(self, budget: Budget, *, parts: Sequence[str]) -> None:
        self.budget, self.parts = budget, tuple(parts)
        self.spacing = [0] * len(parts)
        self._last: list[int | None] = [None] * len(parts)
        self._gap = [1] * len(parts)
        self._seconds = [0.0] * len(parts)
        self._seen: Cost | None = None

    def allows(self, part: int, step: int) -> bool:
        """Whether a part that its schedule asks for at `step` may be taken."""
        last = self._last[part]
        return last is None or step == last or step - last >= self.spacing[part]

    @contextmanager
    def taking(self, part: int, step: int) -> Iterator[None]:
        """Around the work of a part at `step`."""
        last = self._last[part]
        self._gap[part] = 1 if last is None else max(1, step - last)
        self._last[part] = step
        with self.timing(part):
            yield

    @contextmanager
    def timing(self, part: int) -> Iterator[None]:
        """Around work of a part that comes later than its step, on the host."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[part] += time.perf_counter() - begin

    def over_budget_part(self, cost: Cost) -> int | None:
        """The part to thin, given the cost so far and looking at what came since the last look; None for none.

        The first look only begins: before it lies what is done once, such as laying the store out.
        What is too dear and cannot be helped (everything that may be is thinned already) is None too.
        """
        before, seconds = self._seen, self._seconds
        self._seen, self._seconds = cost, [0.0] * len(self.parts)
        if before is None:
            return None
        lap = cost.since(before)
        if not lap.fraction > self.budget.share:
            return None
        worth = 0.1 * self.budget.share * (lap.wall_seconds - lap.most_seconds)
        scale = lap.most_seconds / lap.seconds if lap.seconds > 0 else 1.0
        metrics = max(range(len(self.parts) - 1), key=seconds.__getitem__, default=None)
        if metrics is not None and seconds[metrics] * scale > worth:
            return metrics
        snapshots = len(self.parts) - 1
        return snapshots if self.budget.thin_snapshots and self._last[snapshots] is not None else None

    def back_off(self, part: int) -> None:
        """Double the spacing of a part."""
        self.spacing[part] = 2 * max(self.spacing[part], self._gap[part])

    def state_dict(self) -> dict[str, Any]:
        """Spacings and last steps, for a run that goes on."""
        return {"spacing": list(self.spacing), "last": list(self._last), "gap": list(self._gap)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave. Raises ValueError where it was saved of other parts."""
        if len(state["spacing"]) != len(self.parts):
            raise ValueError(
                f"the state has spacings of {len(state['spacing'])} parts; here are {', '.join(self.parts)}: "
                "go on with the same metrics."
            )
        self.spacing, self._last, self._gap = (list(state[name]) for name in ("spacing", "last", "gap"))


def budget_variables(parts: Sequence[str]) -> tuple[Variable, ...]:
    """What a recorder with a budget says besides: its share of the loop, and what it has thinned."""
    return (
        Variable("recorder.share", description="time in the recorder so far over the loop's own time"),
        Variable(
            "recorder.spacing",
            ("part",),
            unit="step",
            description=f"least updates between two times, 0: as scheduled; parts: {', '.join(parts)}",
            sizes={"part": len(parts)},
            labels=tuple(_distinct(parts)),
        ),
    )
