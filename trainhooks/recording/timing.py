"""What the recorder costs, measured by itself, and what it leaves out where that is more than it may."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch


@dataclass(frozen=True)
class Cost:
    """Seconds spent in the recorder, over the updates done since its first moment.

    `seconds` are those of the training thread, `device_seconds` those of the GPU's training stream, as far as it has
    come; 0 on the host. `writer_seconds` are the CPU time of the sinks' own threads, such as the store's, up to the
    record and the block they are at: on a machine whose cores the loop does not need they cost it nothing. All run side
    by side, so they do not add up.
    """

    steps: int
    seconds: float
    wall_seconds: float
    device_seconds: float = 0.0
    writer_seconds: float = 0.0

    @property
    def milliseconds_per_step(self) -> float:
        """Mean of the training thread over all updates; NaN before the first."""
        return 1000 * self.seconds / self.steps if self.steps else float("nan")

    @property
    def device_milliseconds_per_step(self) -> float:
        """Mean of the GPU over all updates, 0 without one; NaN before the first."""
        return 1000 * self.device_seconds / self.steps if self.steps else float("nan")

    @property
    def writer_milliseconds_per_step(self) -> float:
        """Mean CPU time of the sinks' threads over all updates; NaN before the first."""
        return 1000 * self.writer_seconds / self.steps if self.steps else float("nan")

    @property
    def most_seconds(self) -> float:
        """The larger of the thread's and the GPU's: what the loop can have lost by the recorder."""
        return max(self.seconds, self.device_seconds)

    @property
    def fraction(self) -> float:
        """`most_seconds` over the time the loop would have taken without it; NaN before the first update."""
        bare = self.wall_seconds - self.most_seconds
        return self.most_seconds / bare if self.steps and bare > 0 else float("nan")

    def since(self, earlier: Cost) -> Cost:
        """What came after `earlier`, a cost of the same recorder."""
        return Cost(
            self.steps - earlier.steps,
            self.seconds - earlier.seconds,
            self.wall_seconds - earlier.wall_seconds,
            self.device_seconds - earlier.device_seconds,
            self.writer_seconds - earlier.writer_seconds,
        )


class TimingEvent(Protocol):
    """A point in a device's work, its time taken there."""

    def query(self) -> bool:
        """Whether the device has come here."""

    def elapsed_time(self, later: Any) -> float:
        """Milliseconds from here to a later mark; both must have been come by."""


class DeviceTimer:
    """Adds up what a device spends between enter and exit, without ever waiting for it.

    `mark` puts a mark behind what the device has been given so far. Between two marks a device also stands still where
    the host does not give it work fast enough: that is the recorder's time too.
    """

    def __init__(self, mark: Callable[[], TimingEvent]) -> None:
        self._mark = mark
        self._begun: list[TimingEvent] = []
        self._pairs: deque[tuple[TimingEvent, TimingEvent]] = deque()
        self._seconds = 0.0

    def __enter__(self) -> DeviceTimer:
        self._begun.append(self._mark())
        return self

    def __exit__(self, *exc: object) -> None:
        self._pairs.append((self._begun.pop(), self._mark()))
        self._add_up()  # at each exit: marks that nobody asks about would pile up over a run

    @property
    def seconds(self) -> float:
        """Of all that the device has come by so far."""
        self._add_up()
        return self._seconds

    def _add_up(self) -> None:
        """A device goes in order, so the first mark that it has not come by ends it."""
        while self._pairs and self._pairs[0][1].query():
            begin, end = self._pairs.popleft()
            self._seconds += begin.elapsed_time(end) / 1000


class Stopwatch:
    """Adds up the time between enter and exit, and knows when the first began and the last step ended.

    Beside a GPU it has the device's clock too, see `set_device_timer`.
    """

    def __init__(self) -> None:
        self._clocks: list[DeviceTimer | None] = [None]  # the last one is that of the device now
        self._running: DeviceTimer | None = None
        self._seconds = 0.0
        self._lap = 0.0
        self._steps = 0
        self._first: float | None = None
        self._last = 0.0
        self._entered = 0.0

    def __enter__(self) -> Stopwatch:
        self._entered = time.perf_counter()
        self._first = self._entered if self._first is None else self._first
        self._running = self._clocks[-1]
        if self._running is not None:
            self._running.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._running is not None:
            self._running.__exit__()
        now = time.perf_counter()
        self._seconds += now - self._entered
        self._lap += now - self._entered
        self._last = now

    def set_device_timer(self, clock: DeviceTimer | None) -> None:
        """From the next enter on the model is on the device of this clock; None for the host."""
        self._clocks.append(clock)

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
        device = sum(clock.seconds for clock in self._clocks if clock is not None)
        return Cost(self._steps, self._seconds, self._last - (self._first or 0.0), device)


def device_clock(device: torch.device) -> DeviceTimer | None:
    """A clock of what a GPU does; None for the host, whose clock the stopwatch has."""
    if device.type != "cuda":
        return None

    def mark() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(device))
        return event

    return DeviceTimer(mark)
