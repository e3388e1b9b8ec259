"""When to record: a schedule is a function from a step number to yes or no."""

from __future__ import annotations

import operator
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import SupportsIndex


class Schedule:
    """Decides for each step t >= 0 (the number of optimizer updates done) whether something fires.

    Join two with `|`. To write your own, subclass and define `__call__(step) -> bool`.

    >>> (Every(4) | Steps([1])).steps(9)
    [0, 1, 4, 8]
    """

    def __call__(self, step: int) -> bool:
        """Whether the schedule fires at `step`."""
        raise NotImplementedError

    def __or__(self, other: Schedule) -> Schedule:
        return Union((self, other))

    def steps(self, last: int) -> list[int]:
        """The steps 0 ... `last` at which the schedule fires, in order."""
        return [step for step in range(last + 1) if self(step)]

    def count(self, last: int) -> int:
        """How many steps of 0 ... `last` it fires at, without a list of them."""
        return sum(1 for step in range(last + 1) if self(step))

    def _count_blocks(self, n: int, last: int) -> int:
        """Of the blocks n ... 2n - 1, 2n ... 3n - 1 and so on, how many hold a step up to `last` at which it fires."""
        return len({step // n for step in range(n, last + 1) if self(step)})


@dataclass(frozen=True)
class EveryStep(Schedule):
    """Fires at every step.

    >>> EveryStep().count(200)
    201
    """

    def __call__(self, step: int) -> bool:
        """Always true."""
        return True

    def count(self, last: int) -> int:
        """See `Schedule.count`."""
        return last + 1

    def _count_blocks(self, n: int, last: int) -> int:
        return last // n


@dataclass(frozen=True)
class Every(Schedule):
    """Fires at 0, n, 2n, ...

    Raises ValueError where n is not a positive whole number.

    >>> Every(3).steps(10)
    [0, 3, 6, 9]
    """

    n: int

    def __post_init__(self) -> None:
        if isinstance(self.n, bool) or operator.index(self.n) < 1:
            raise ValueError(f"Every({self.n!r}): n must be a whole number of 1 or more.")
        object.__setattr__(self, "n", operator.index(self.n))

    def __call__(self, step: int) -> bool:
        """Whether `step` is a multiple of n."""
        return step % self.n == 0

    def count(self, last: int) -> int:
        """See `Schedule.count`."""
        return last // self.n + 1

    def _count_blocks(self, n: int, last: int) -> int:
        return len(_blocks_of_multiples(self.n, n, after=n - 1, last=last))


def _blocks_of_multiples(of: int, n: int, *, after: int, last: int) -> range:
    """The multiples of `of` in `after` + 1 ... `last` where each lies in another block of n, else the blocks of all."""
    first, end = after // of + 1, last // of + 1
    return range(first, end) if of >= n or first >= end else range(first * of // n, (end - 1) * of // n + 1)


@dataclass(frozen=True)
class LogSpaced(Schedule):
    """Pythia's checkpoint grid: 0, 1, 2, 4 ... 512, then every 1000 (Biderman et al. 2023, arXiv 2304.01373).

    `until` is the last power of two that fires, `every` the linear spacing (its multiples) beyond it.

    >>> LogSpaced(until=8, every=20).steps(60)
    [0, 1, 2, 4, 8, 20, 40, 60]
    """

    until: int = 512
    every: int = 1000

    def __post_init__(self) -> None:
        if self.until < 1 or self.every < 1:
            raise ValueError(f"LogSpaced needs until >= 1 and every >= 1, got {self.until} and {self.every}.")

    def __call__(self, step: int) -> bool:
        """Whether `step` is 0, a power of two up to `until`, or a multiple of `every` beyond it."""
        if step <= self.until:
            return step & (step - 1) == 0
        return step % self.every == 0

    def count(self, last: int) -> int:
        """See `Schedule.count`."""
        powers_and_zero = min(last, self.until).bit_length() + 1
        return powers_and_zero + max(0, last // self.every - self.until // self.every)

    def _count_blocks(self, n: int, last: int) -> int:
        linear = _blocks_of_multiples(self.every, n, after=max(self.until, n - 1), last=last)
        powers = {(1 << bit) // n for bit in range(min(last, self.until).bit_length()) if 1 << bit >= n}
        first = (max(self.until, n - 1) // self.every + 1) * self.every // n  # the one block that both may be in
        return len(linear) + len(powers) - (len(linear) > 0 and first in powers)


class Steps(Schedule):
    """Fires at the steps listed.

    Raises ValueError where the list is empty or holds anything but whole numbers >= 0.

    >>> Steps([50, 0, 5]).steps(20)
    [0, 5]
    """

    def __init__(self, steps: Iterable[SupportsIndex]) -> None:
        given = list(steps)
        bad = [s for s in given if isinstance(s, bool) or not hasattr(s, "__index__") or operator.index(s) < 0]
        if bad:
            raise ValueError(f"Steps takes whole numbers of 0 or more, got {bad[:3]}.")
        listed = [operator.index(step) for step in given]
        if not listed:
            raise ValueError("Steps([]) never fires: list at least one step.")
        self._steps = frozenset(listed)

    def __call__(self, step: int) -> bool:
        """Whether `step` is listed."""
        return step in self._steps

    def count(self, last: int) -> int:
        """See `Schedule.count`."""
        return sum(1 for step in self._steps if step <= last)

    def _count_blocks(self, n: int, last: int) -> int:
        return len({step // n for step in self._steps if n <= step <= last})

    def __repr__(self) -> str:
        return f"Steps({sorted(self._steps)})"


@dataclass(frozen=True)
class Thinned(Schedule):
    """Of a recorder's own records fewer: all below step `n`, then the first of every `n` updates, and the run's last.

    For a metric that costs more than the others. It asks for no record of its own: in a recorder it fires among the
    steps of the recorder's `schedule` (`of`), and at the last one where the run's length is known (`last`). So of
    records that are `n` updates apart or more it leaves none out. Outside a recorder `of` is every step.

    Raises ValueError where n is not a positive whole number.

    >>> Thinned(10).steps(42)
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 20, 30, 40]
    >>> Thinned(10).within(Every(4), last=42).steps(42)
    [0, 4, 8, 12, 20, 32, 40]
    """

    n: int = 10
    of: Schedule = field(default_factory=EveryStep, repr=False)
    last: int | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.n, bool) or operator.index(self.n) < 1:
            raise ValueError(f"Thinned({self.n!r}): n must be a whole number of 1 or more.")

    def within(self, schedule: Schedule, *, last: int | None) -> Thinned:
        """The same among the steps of `schedule`, in a run of `last` updates (None: not known)."""
        return replace(self, of=schedule, last=last)

    def __call__(self, step: int) -> bool:
        """Whether `step` is one of `of`, and below n, the first of its n updates, or the last."""
        if not self.of(step):
            return False
        return step < self.n or step == self.last or not any(map(self.of, range(step - step % self.n, step)))

    def count(self, last: int) -> int:
        """See `Schedule.count`."""
        blocks = self.of._count_blocks(self.n, last)
        ended = self.last is not None and self.n <= self.last <= last and self(self.last)
        is_more = ended and not replace(self, last=None)(self.last or 0)
        return self.of.count(min(last, self.n - 1)) + blocks + is_more


@dataclass(frozen=True)
class Union(Schedule):
    """Fires where any of its parts does."""

    parts: tuple[Schedule, ...]

    def __call__(self, step: int) -> bool:
        """Whether any part fires at `step`."""
        return any(part(step) for part in self.parts)

    def __repr__(self) -> str:
        return " | ".join(dict.fromkeys(map(in_words, self.parts)))


def check_schedule(what: str, schedule: object) -> None:
    """Raises ValueError for what is no schedule, such as a number of steps; None is one."""
    if schedule is not None and not isinstance(schedule, Schedule):
        raise ValueError(f"{what} is {schedule!r}; pass a schedule, such as th.Every(10) or th.Steps([0, 5]).")


def is_foreseen(schedule: Schedule) -> bool:
    """Whether it says of a later step now what it will say then: ours do, one of the user's own may look elsewhere."""
    if isinstance(schedule, Union):
        return all(map(is_foreseen, schedule.parts))
    return is_foreseen(schedule.of) if isinstance(schedule, Thinned) else type(schedule) in _FORESEEN


_FORESEEN = (EveryStep, Every, LogSpaced, Steps)


def in_words(schedule: Schedule) -> str:
    """A schedule as one writes it, cut where it is long; one without words of its own has its class's name.

    >>> in_words(Every(4) | Steps([1]))
    'Every(n=4) | Steps([1])'
    """
    has_words = type(schedule).__repr__ is not object.__repr__
    return textwrap.shorten(repr(schedule), 120, placeholder=" ...") if has_words else type(schedule).__name__
