"""What a verdict needs of a checkpoint, kept in place of its matrix: the products with frequency and its nulls."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from trainhooks.analyze.job import Job
from trainhooks.core.variable import Variable
from trainhooks.lead.change import farthest_element
from trainhooks.lead.draws import Columns
from trainhooks.lead.kept_sums import VALUES, lead_sizes
from trainhooks.lead.lead_sums import End, LeadAccumulator
from trainhooks.lead.run_analysis import LEAST_ROWS
from trainhooks.lead.trajectory import FARTHEST
from trainhooks.numerics.row_blocks import rows_read
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

    def __init__(
        self, job: Job, *, first: Tensor, final: Tensor, cut: Tensor | None, first_step: int, cut_step: int
    ) -> None:
        mask = lead_mask(job)
        self._reader: LeadAccumulator | None = None
        self._ids = None if mask is None or mask.all() else np.flatnonzero(mask)
        self._cut_step = cut_step
        self._ends: dict[int, End] = {first_step: "first", cut_step: "cut", job.final.step: "last"}
        if mask is None or job.counts is None:
            return
        y = frequency_target(job.counts, mask=torch.from_numpy(mask)).numpy()[mask]
        begin, end = HeadRows(first), HeadRows(final)
        middle = None if cut is None else HeadRows(cut)
        self._farthest = FARTHEST * max(farthest_element(one, self._ids) for one in (begin, end))
        if not all(one is None or self._is_sound(one) for one in (begin, end, middle)):
            return
        try:
            self._reader = LeadAccumulator(begin, end, middle, targets=y, ids=self._ids)
        except ValueError:  # constant targets, nothing moved: no lead, as the verdict will say
            return

    def _is_sound(self, head: HeadRows) -> bool:
        return farthest_element(head, self._ids) <= self._farthest < np.inf

    def values(self, step: int, head: Tensor) -> Mapping[str, Tensor]:
        """The variables' values, float64, of the head at `step`; nothing where there is no lead."""
        matrix, end = HeadRows(head), self._ends.get(step)
        if self._reader is None or (end is None and not self._is_sound(matrix)):
            return {}
        found = self._reader.measure(matrix, within_cut=step <= self._cut_step, end=end)
        found |= {"correlation": np.asarray(self._reader.correlation), "cut_step": np.asarray(float(self._cut_step))}
        return {f"lead.{name}": torch.from_numpy(np.array(value)) for name, value in found.items()}


class HeadRows:
    """An output embedding [vocab, dim] as float32 rows of NumPy, taken a block at a time: what `Change` reads.

    A block is there until the next is taken; then its pages may go, where a file is behind it.
    """

    def __init__(self, head: Tensor) -> None:
        self._head = head
        self._taken: tuple[Tensor | None, slice] | None = None
        self.shape = (int(head.shape[0]), int(head.shape[1]))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, wanted: slice | np.ndarray) -> np.ndarray:
        if self._taken is not None:
            rows_read(self._head, *self._taken)
        if isinstance(wanted, slice):
            self._taken, rows = (None, wanted), self._head[wanted]
        else:
            ids = torch.from_numpy(wanted)
            self._taken, rows = (ids, slice(0, len(ids))), self._head.index_select(0, ids)
        found: np.ndarray = rows.to(torch.float32).numpy()
        return found
