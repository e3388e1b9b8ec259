"""What a recorder measures when nothing else is asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from trainhooks.core.token_counts import TokenCounts
from trainhooks.metrics.base import Metric
from trainhooks.metrics.covariate_baseline import CovariateBaseline
from trainhooks.metrics.frequency_probe import FrequencyProbe
from trainhooks.metrics.geometry import HeadGeometry
from trainhooks.metrics.group_convergence import GroupConvergence
from trainhooks.metrics.spectrum import Spectrum
from trainhooks.numerics.host import cpu_default_device
from trainhooks.probe import token_mask


@cpu_default_device()
def default_metrics(
    counts: TokenCounts | np.ndarray | None,
    *,
    min_count: int = 1,
    exclude: Sequence[int] = (),
    token_texts: Sequence[str] | None = None,
) -> list[Metric]:
    """The frequency probe (with counts), spectrum and geometry of the output embedding, convergence by group.

    `counts` int64 [vocab], or `TokenCounts` of so many, one for each row. With counts, spectrum and geometry are
    those of the rows that the probe is fitted on; without, of all rows. With counts and `token_texts`, the decoded
    text of each row, the covariate baseline stands beside the probe.
    """
    if counts is None:
        return [Spectrum(), HeadGeometry(), GroupConvergence()]
    counts = counts.counts if isinstance(counts, TokenCounts) else counts
    mask = token_mask(torch.from_numpy(np.array(counts)), min_count=min_count, exclude=exclude)
    probes: list[Metric] = [FrequencyProbe(counts, min_count=min_count, exclude=exclude)]
    if token_texts is not None:
        probes.append(CovariateBaseline(counts, token_texts, min_count=min_count, exclude=exclude))
    return [*probes, Spectrum(mask=mask), HeadGeometry(mask=mask), GroupConvergence()]
