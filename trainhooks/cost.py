"""What the recorder costs, measured by itself."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Seconds of the training thread spent in the recorder, over the updates done since its first moment."""

    steps: int
    seconds: float
    wall_seconds: float

    @property
    def milliseconds_per_step(self) -> float:
        """Mean over all updates; NaN before the first."""
        return 1000 * self.seconds / self.steps if self.steps else float("nan")

    @property
    def fraction(self) -> float:
        """Time in the recorder over the time the loop would have taken without it; NaN before the first update."""
        bare = self.wall_seconds - self.seconds
        return self.seconds / bare if self.steps and bare > 0 else float("nan")


class Stopwatch:
    """Adds up the time between enter and exit, and knows when the first began and the last step ended."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._lap = 0.0
        self._steps = 0
        self._first: float | None = None
        self._last = 0.0
        self._entered = 0.0

    def __enter__(self) -> Stopwatch:
        self._entered = time.perf_counter()
        self._first = self._entered if self._first is None else self._first
        return self

    def __exit__(self, *exc: object) -> None:
        now = time.perf_counter()
        self._seconds += now - self._entered
        self._lap += now - self._entered
        self._last = now

    def step_done(self) -> None:
        """One more update is over."""
        self._steps += 1

    def take_lap(self) -> float:
        """Seconds since the last lap was taken, the moment being timed included; starts the next."""
        now = time.perf_counter()
        lap = self._lap + now - self._entered
        self._lap = self._entered - now  # what has been given out is taken off again when this moment ends
        return lap

    @property
    def cost(self) -> Cost:
        """So far."""
        return Cost(self._steps, self._seconds, self._last - (self._first or 0.0))
