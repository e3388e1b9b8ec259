"""What a recorder measures when nothing else is asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from trainhooks.metrics.base import Metric
from trainhooks.metrics.frequency_probe import FrequencyProbe
from trainhooks.metrics.geometry import HeadGeometry
from trainhooks.metrics.group_convergence import GroupConvergence
from trainhooks.metrics.spectrum import Spectrum
from trainhooks.probe import token_mask


def default_metrics(counts: np.ndarray | None, *, min_count: int = 1, exclude: Sequence[int] = ()) -> list[Metric]:
    """The frequency probe (with counts), spectrum and geometry of the output embedding, convergence by group.

    `counts` int64 [vocab], one for each row. With counts, spectrum and geometry are those of the rows that the
    probe is fitted on; without, of all rows.
    """
    if counts is None:
        return [Spectrum(), HeadGeometry(), GroupConvergence()]
    mask = token_mask(torch.from_numpy(np.array(counts)), min_count=min_count, exclude=exclude)
    probe = FrequencyProbe(counts, min_count=min_count, exclude=exclude)
    return [probe, Spectrum(mask=mask), HeadGeometry(mask=mask), GroupConvergence()]
