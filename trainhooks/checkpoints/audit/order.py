"""Do the states stand in the order in which they were made: a later part placed first, a restart in the middle.

A run goes away from where it was: its first and last states are further apart than neighbours are, and no state is
nearer to the first one than to the one before it. Noise around a point comes near to neither bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from torch import Tensor

from trainhooks.checkpoints.audit.header_checks import SuiteFinding

NEARER = 1.25
LEAST_STATES = 4
LEAST_SIDE = 3
MONOTONE = 0.9


def disordered(steps: Sequence[int], sketches: Sequence[Tensor]) -> list[SuiteFinding]:
    """What states, by their sketches, say of the order of their steps: at most one finding, the first that fits."""
    if len(steps) < LEAST_STATES:
        return []
    near = [_apart(before, after) for before, after in pairwise(sketches)]
    to_first = [_apart(sketches[0], sketch) for sketch in sketches]
    norms = [float(sketch.norm()) for sketch in sketches]
    if (i := turned(near, first_to_last=to_first[-1])) is not None:
        message = (
            f"steps {steps[i]} and {steps[i + 1]} are {near[i]:.4g} apart, the first and the last only "
            f"{to_first[-1]:.4g}: do the steps from {steps[i + 1]} on come before the others?"
        )
        return [SuiteFinding("order", (steps[i], steps[i + 1]), message, doubtful=True)]
    if again := restarts(near, to_first):
        k = again[0]
        message = (
            f"step {steps[k]} is {to_first[k]:.4g} from the first and {near[k - 1]:.4g} from the one before it, step "
            f"{steps[k - 1]}: does another run or stage begin there?"
        )
        return [SuiteFinding("order", (steps[k - 1], steps[k]), message, doubtful=True)]
    if (i := falls_back(norms)) is not None:
        message = (
            f"norms go one way before step {steps[i + 1]} and after it, and jump back from {norms[i]:.4g} to "
            f"{norms[i + 1]:.4g} there: does another run or stage begin there?"
        )
        return [SuiteFinding("order", (steps[i], steps[i + 1]), message, doubtful=True)]
    return []


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm())


def turned(near: Sequence[float], *, first_to_last: float) -> int | None:
    """The position i where a later part was placed first: states up to i come after all those from i + 1 on.

    So it is where the widest step between neighbours is more than 1.25 times the way from the last state to the first:
    put together there, the series would be closer. Fewer than four states: None.
    """
    if len(near) + 1 < LEAST_STATES:
        return None
    widest = int(np.argmax(near))
    return widest if near[widest] > NEARER * first_to_last else None


def restarts(near: Sequence[float], to_first: Sequence[float]) -> list[int]:
    """Positions k of states that are nearer to the first state than to the one before them, by more than 1.25 times.

    `near[k - 1]` lies between states k - 1 and k, `to_first[k]` between the first and k. The first two are not judged.
    """
    return [k for k in range(2, len(to_first)) if near[k - 1] > NEARER * to_first[k]]


def falls_back(norms: Sequence[float]) -> int | None:
    """The position i where norms that go one way on both sides jump back over more than half of their range."""
    values = np.asarray(norms, dtype=float)
    reach = float(values.max() - values.min()) if len(values) else 0.0
    if len(values) < 2 * LEAST_SIDE or not reach:
        return None
    for cut in range(LEAST_SIDE - 1, len(values) - LEAST_SIDE):
        sides = [_trend(values[: cut + 1]), _trend(values[cut + 1 :])]
        jump = float(values[cut + 1] - values[cut])
        same_way = min(sides) >= MONOTONE or max(sides) <= -MONOTONE
        if same_way and abs(jump) > reach / 2 and jump * sides[0] < 0:
            return cut
    return None


def _trend(values: np.ndarray) -> float:
    """From -1 (every step falls) to 1 (every step rises)."""
    signs = [np.sign(after - before) for before, after in pairwise(values)]
    return float(np.mean(signs)) if signs else 0.0
