"""How a run is doing now, by its store alone: also while it is written, here or at a URL."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from trainhooks.core.character_plots import spark
from trainhooks.core.formatting import human, plain
from trainhooks.core.printable import page
from trainhooks.store.reading.reader import Store

CORRELATIONS = {
    "held-out Spearman": "probe.heldout_spearman",
    "its null, permuted": "probe.permuted_heldout_spearman",
    "row norm alone": "probe.row_norm_spearman",
}
LOSS, DISTANCE, STEP_SIZE, COST = (
    "loss",
    "convergence.distance_to_initial",
    "convergence.relative_step",
    "recorder.milliseconds",
)
_RECENT = 10


@dataclass(frozen=True)
class Status:
    """A run at one look. Series are by record; `rate` is updates a second since the look before, None at the first.

    `correlations` by name, `distance` and `step_size` by group (from the first state over its norm; of the last
    record), `waiting` records in the journal, `cost` milliseconds in the recorder, mean of the last ten records.
    """

    path: str
    step: int | None
    records: int
    complete: bool
    holder: str | None
    waiting: int
    dropped: int
    disk_bytes: int
    rate: float | None = None
    cost: float | None = None
    loss: list[float] = field(default_factory=list)
    correlations: dict[str, list[float]] = field(default_factory=dict)
    distance: dict[str, list[float]] = field(default_factory=dict)
    step_size: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; what is not measured is None, and of each series there is the last value."""
        found: dict[str, Any] = plain(asdict(self))
        found["loss"] = plain(_last(self.loss))
        for name in ("correlations", "distance"):
            found[name] = {key: plain(_last(values)) for key, values in getattr(self, name).items()}
        return found

    def render(self) -> str:
        """A screen: where the run is, frequency beside its null, convergence by group, what it costs."""
        width = max(map(len, (*CORRELATIONS, *self.distance)))
        lines = [self.path, self._where(), ""]
        lines += [self._line(name, values, width, low=0.0, high=1.0) for name, values in self.correlations.items()]
        lines += [self._line("loss, nats a token", self.loss, width)] if self.loss else []
        if self.distance:
            highest = max((x for values in self.distance.values() for x in values if np.isfinite(x)), default=1.0)
            lines += ["", "distance from start, over its norm (flat: arrived), and the last step's size"]
            for name, values in self.distance.items():
                step = self.step_size.get(name, np.nan)
                last = f"   step {step:.2g}" if np.isfinite(step) else ""
                lines.append(self._line(name, values, width, low=0.0, high=highest) + last)
        cost = "" if self.cost is None else f"; recorder {self.cost:.1f} ms a record"
        waiting = f"queue {self.waiting} records in the journal, {self.dropped} dropped"
        return page([*lines, "", f"{waiting}; disk {human(self.disk_bytes)}{cost}"])

    def _where(self) -> str:
        if self.step is None:
            return "no record yet"
        rate = "" if self.rate is None else f", {self.rate:.3g} updates a second"
        state = "closed" if self.complete else f"written by {self.holder}" if self.holder else "not closed, no writer"
        return f"step {self.step}{rate}; {self.records} records; {state}"

    @staticmethod
    def _line(
        name: str, values: list[float], width: int, *, low: float | None = None, high: float | None = None
    ) -> str:
        last = _last(values)
        told = "" if last is None else f"{last:.3f}"
        return f"{name:<{width}}  {spark(values, low=low, high=high):<32}  {told:>7}"


def status(store: Store, *, before: Status | None = None, seconds: float | None = None) -> Status:
    """The status of a store now; with the look `before` and the seconds since then, its rate too."""
    steps = store.steps
    names = frozenset(store.names)
    series = {label: _series(store, name) for label, name in CORRELATIONS.items() if name in names}
    step = int(steps[-1]) if len(steps) else None
    moved = None if before is None or before.step is None or step is None else step - before.step
    cost = _series(store, COST)[-_RECENT:] if COST in names else []
    return Status(
        path=store.where,
        step=step,
        records=len(steps),
        complete=store.complete,
        holder=store.holder,
        waiting=store.waiting,
        dropped=store.dropped,
        disk_bytes=store.disk_bytes,
        rate=moved / seconds if moved is not None and seconds else None,
        cost=float(np.mean(cost)) if cost and np.isfinite(cost).all() else None,
        loss=_series(store, LOSS) if LOSS in names else [],
        correlations=series,
        distance=_by_group(store, DISTANCE) if DISTANCE in names else {},
        step_size=_step_sizes(store) if STEP_SIZE in names else {},
    )


def _series(store: Store, name: str) -> list[float]:
    return [float(value) for value in store[name]]


def _by_group(store: Store, name: str) -> dict[str, list[float]]:
    values = store[name]
    return {group: values[:, index].astype(float).tolist() for index, group in enumerate(store.groups)}


def _step_sizes(store: Store) -> dict[str, float]:
    lasts = {group: _last(values) for group, values in _by_group(store, STEP_SIZE).items()}
    return {group: last for group, last in lasts.items() if last is not None}


def _last(values: list[float]) -> float | None:
    """The last value that was measured."""
    return next((value for value in reversed(values) if np.isfinite(value)), None)
