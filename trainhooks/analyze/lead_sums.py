"""What a verdict needs of a checkpoint, kept in place of its matrix: the products with frequency and its nulls."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from trainhooks.analyze.job import Job
from trainhooks.core.variable import Variable
from trainhooks.lead.draws import Columns
from trainhooks.lead.kept_sums import VALUES, lead_sizes
from trainhooks.lead.lead_sums import LeadAccumulator
from trainhooks.lead.run_analysis import LEAST_ROWS
from trainhooks.lead.trajectory import FARTHEST
from trainhooks.probe import frequency_target

LEAST_RECORDS = 3


def lead_mask(job: Job) -> np.ndarray | None:
    """The rows [vocab] of the frequency target; None where the job has no lead: no counts, too few rows or records."""
    if job.rows is None or job.rows.mask is None or not job.keeps_lead or len(job.entries) < LEAST_RECORDS:
        return None
    mask = job.rows.mask.numpy()
    return mask if np.count_nonzero(mask) >= LEAST_ROWS else None


def lead_variables(rows: int) -> tuple[Variable, ...]:
    """The variables that `LeadKeeper` fills, for a target of so many rows."""
    sizes = lead_sizes(Columns.of(rows))
    return tuple(
        Variable(name, dims, description=said, sizes={dim: sizes[dim] for dim in dims})
        for name, (dims, said) in VALUES.items()
    )


def job_variables(job: Job) -> tuple[Variable, ...]:
    """Those of a job; none where it has no lead."""
    mask = lead_mask(job)
    return () if mask is None else lead_variables(int(np.count_nonzero(mask)))


class LeadKeeper:
    """Measures checkpoints for the lead, against the first, the final one and that at 3/4 of the way (None: not there).

    Where nothing can be measured (one constant count, no change, a matrix that is not finite or far beyond both ends)
    it gives no values.
    """

    def __init__(self, job: Job, *, first: Tensor, final: Tensor, cut: Tensor | None, cut_step: int) -> None:
        mask = lead_mask(job)
        self._reader: LeadAccumulator | None = None
        self._rows, self._cut_step = mask, cut_step
        if mask is None or job.counts is None:
            return
        y = frequency_target(job.counts, mask=torch.from_numpy(mask)).numpy()[mask]
        begin, end = self._masked(first), self._masked(final)
        middle = None if cut is None else self._masked(cut)
        self._farthest = FARTHEST * max(float(bound) for one in (begin, end) for bound in (one.max(), -one.min()))
        if not all(one is None or self._is_sound(one) for one in (begin, end, middle)):
            return
        try:
            self._reader = LeadAccumulator(begin, end, middle, targets=y)
        except ValueError:  # constant targets, nothing moved: no lead, as the verdict will say
            return

    def _masked(self, head: Tensor) -> np.ndarray:
        """The target's rows; no copy where these are all."""
        rows: np.ndarray = head.numpy()
        return rows if self._rows is None or self._rows.all() else rows[self._rows]

    def _is_sound(self, rows: np.ndarray) -> bool:
        with np.errstate(invalid="ignore"):  # not of abs(): a copy of the matrix
            return bool(max(rows.max(), -rows.min()) <= self._farthest < np.inf)

    def values(self, step: int, head: Tensor) -> Mapping[str, Tensor]:
        """The variables' values, float64, of the head at `step`; nothing where there is no lead."""
        if self._reader is None or not self._is_sound(rows := self._masked(head)):
            return {}
        found = self._reader.measure(rows, within_cut=step <= self._cut_step)
        found |= {"correlation": np.asarray(self._reader.correlation), "cut_step": np.asarray(float(self._cut_step))}
        return {f"lead.{name}": torch.from_numpy(np.array(value)) for name, value in found.items()}
