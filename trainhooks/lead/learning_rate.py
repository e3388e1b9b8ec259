"""Where a step falls in the learning-rate schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from trainhooks.lead.onset import Series, check_steps

Phase = Literal["warm-up", "plateau", "decay"]
NEAR_PEAK = 0.99


@dataclass(frozen=True)
class Placement:
    """An onset's place in the schedule: `share_of_peak` in [0, 1] is the learning rate there over the highest one.

    "plateau" is the stretch between the first and the last record within 1% of the peak, "warm-up" before it,
    "decay" behind it.
    """

    step: float
    phase: Phase
    share_of_peak: float


def placement_of(step: float, *, learning_rate: Series) -> Placement | None:
    """Placement of `step` by linear interpolation; None where the step is NaN or no learning rate is above zero.

    Raises ValueError where the steps do not increase.
    """
    steps, rates = learning_rate.finite()
    if len(steps) > 1:
        check_steps(steps)
    if not np.isfinite(step) or len(rates) == 0 or not rates.max() > 0.0:
        return None
    high = steps[rates >= NEAR_PEAK * rates.max()]
    phase: Phase = "warm-up" if step < high[0] else "decay" if step > high[-1] else "plateau"
    return Placement(float(step), phase, float(np.interp(step, steps, rates) / rates.max()))
