"""Which steps of a suite: what `--steps` means, the preset grids, and the steps a regular series lacks."""

from __future__ import annotations

import math
import operator
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

from trainhooks.core.schedule import LogSpaced

PYTHIA_LAST = 143000
PYTHIA_GRID = tuple(LogSpaced(until=512, every=1000).steps(PYTHIA_LAST))
PRESETS = {"pythia": PYTHIA_GRID}
MOST_STEPS = 10_000_000
LEAST_REPEATS = 3

HELP = (
    "Write steps as 0,1,2,4, as ranges first:last or first:last:every (0:143000:1000, last included), as log (one "
    "step per doubling), as pythia (0, 1, 2, 4 ... 512, then every 1000 to 143000), or several with commas."
)


def parse_steps(steps: str | Iterable[int], *, available: Sequence[int]) -> tuple[int, ...]:
    """The steps that a selection asks for, ascending, each once, whether a suite has them or not.

    A text joins with commas: whole numbers, ranges `first:last[:every]` with `last` included, `pythia` (Biderman et
    al. 2023, arXiv 2304.01373: 154 steps), and `log`, which takes from `available` the step nearest to each power of
    two (by ratio), the first and the last. Anything else is an iterable of whole numbers.

    Raises ValueError for a selection that is empty, malformed, negative or longer than ten million steps.
    """
    if isinstance(steps, str):
        parts = [part.strip() for part in steps.split(",") if part.strip()]
        wanted = {step for part in parts for step in _part(part, available)}
    else:
        wanted = {operator.index(step) for step in steps}
    if not wanted:
        raise ValueError(f"the selection of steps {steps!r} is empty. {HELP}")
    if min(wanted) < 0:
        raise ValueError(f"step {min(wanted)} is negative; steps count from 0. {HELP}")
    return tuple(sorted(wanted))


def missing_steps(steps: Sequence[int]) -> tuple[int, ...]:
    """The steps that a series skips by its own regular spacing; empty where it has none.

    The spacing is the most common difference (at least three times). A gap counts where it is a whole multiple of it
    and the spacing goes on later, or came just before and the series ends there; all gaps together may hold at most
    half as many steps as the series has (a series that grew sparser lacks nothing). Before it, powers of two that
    double at least three times lack the powers they jump over.
    """
    ordered = sorted(set(steps))
    lacking = [*_lacking_powers(ordered), *_lacking_linear(ordered)]
    return tuple(sorted(set(lacking) - set(ordered)))


def _part(part: str, available: Sequence[int]) -> Iterable[int]:
    if part in PRESETS:
        return PRESETS[part]
    if part == "log":
        return _one_per_doubling(sorted(available))
    pieces = part.split(":")
    if not all(piece.strip().isascii() and piece.strip().isdigit() for piece in pieces) or len(pieces) > 3:
        raise ValueError(f"{part!r} names no steps. {HELP}")
    first, *rest = map(int, pieces)
    last = rest[0] if rest else first
    every = rest[1] if len(rest) > 1 else 1
    if every < 1 or last < first:
        raise ValueError(f"the range {part!r} is empty: it needs first <= last and every >= 1. {HELP}")
    if (last - first) // every >= MOST_STEPS:
        raise ValueError(f"the range {part!r} holds more than {MOST_STEPS} steps. Take a larger spacing.")
    return range(first, last + 1, every)


def _one_per_doubling(available: Sequence[int]) -> set[int]:
    if not available:
        return set()
    positive = [step for step in available if step > 0]
    powers = [2**k for k in range(positive[-1].bit_length() + 1)] if positive else []
    return {available[0], available[-1], *(_nearest(positive, power) for power in powers)}


def _nearest(ordered: Sequence[int], target: int) -> int:
    place = bisect_left(ordered, target)
    around = ordered[max(place - 1, 0) : place + 1]
    return min(around, key=lambda step: abs(math.log(step / target)))


def _lacking_linear(ordered: Sequence[int]) -> list[int]:
    gaps = [after - before for before, after in pairwise(ordered)]
    every, repeats = Counter(gaps).most_common(1)[0] if gaps else (0, 0)
    if repeats < LEAST_REPEATS:
        return []
    first, last = gaps.index(every), len(gaps) - 1 - gaps[::-1].index(every)
    while first > 0 and gaps[first - 1] % every == 0:
        first -= 1
    lacking: list[int] = []
    for number in range(first, len(gaps)):
        goes_on = number < last or number == last + 1 == len(gaps) - 1
        if goes_on and gaps[number] % every == 0 and gaps[number] // every <= len(ordered):
            lacking += range(ordered[number] + every, ordered[number + 1], every)
    return lacking if 2 * len(lacking) <= len(ordered) else []


def _lacking_powers(ordered: Sequence[int]) -> list[int]:
    powers: list[int] = []
    for step in (step for step in ordered if step > 0):
        if step & (step - 1):
            break
        powers.append(step)
    doublings = sum(1 for before, after in pairwise(powers) if after == 2 * before)
    if doublings < LEAST_REPEATS:
        return []
    every = range(powers[0].bit_length() - 1, powers[-1].bit_length())
    lacking = [2**k for k in every if 2**k not in powers]
    return lacking if 2 * len(lacking) <= len(powers) else []
