"""What a recorder measures when nothing else is asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainhooks.core.schedule import Schedule, Thinned, check_schedule
from trainhooks.core.token_counts import TokenCounts
from trainhooks.metrics.base import Metric
from trainhooks.metrics.covariate_baseline import CovariateBaseline
from trainhooks.metrics.frequency_probe import FrequencyProbe
from trainhooks.metrics.geometry import HeadGeometry
from trainhooks.metrics.group_convergence import GroupConvergence
from trainhooks.metrics.spectrum import Spectrum
from trainhooks.numerics.host import cpu_default_device
from trainhooks.probe.row_selection import RowSelection

COSTLY = Thinned()
"""When the default metrics are computed that need the Gram: between them the run goes on as if they were not there."""


@cpu_default_device()
def default_metrics(
    counts: TokenCounts | np.ndarray | RowSelection | None,
    *,
    min_count: int = 1,
    exclude: Sequence[int] = (),
    token_texts: Sequence[str] | None = None,
    costly: Schedule | None = COSTLY,
) -> list[Metric]:
    """The frequency probe (with counts), spectrum and geometry of the output embedding, convergence by group.

    `counts` int64 [vocab], `TokenCounts` or a `RowSelection` of so many, one for each row. With counts, spectrum and
    geometry are those of the rows that the probe is fitted on; without, of all rows. With counts and `token_texts`,
    the decoded text of each row, the covariate baseline stands beside the probe.

    Probe and convergence come with every record. What needs the embedding's Gram is `costly` (spectrum, geometry with
    CKA, covariates): in a recorder it comes with each below step 10, then with the first of every ten updates, and
    with the last where the run's length is known; between them its variables are NaN. None: with every record. Raises
    ValueError where it is no schedule.

    >>> [type(metric).__name__ for metric in default_metrics(np.array([5, 3, 0, 2]))]
    ['FrequencyProbe', 'Spectrum', 'HeadGeometry', 'GroupConvergence']
    """
    check_schedule("costly", costly)
    if counts is None:
        return [Spectrum(schedule=costly), HeadGeometry(schedule=costly), GroupConvergence()]
    rows = RowSelection.of(counts, min_count=min_count, exclude=exclude).counted()
    probes: list[Metric] = [FrequencyProbe(rows)]
    if token_texts is not None:
        probes.append(CovariateBaseline(rows, token_texts, schedule=costly))
    spectrum = Spectrum(mask=rows.mask, schedule=costly)
    return [*probes, spectrum, HeadGeometry(mask=rows.mask, schedule=costly), GroupConvergence()]
