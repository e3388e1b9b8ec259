"""Measuring checkpoints one after another: what a live record does, with files in place of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import zip_longest
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from trainhooks.analyze.distance_to_final import head_to_final
from trainhooks.analyze.group_sums import GroupSums
from trainhooks.analyze.job import FAILURES, HEAD, Failed, Job, Measurement, OpenedCheckpoint, StandIns, open_entry
from trainhooks.analyze.lead_sums import LeadKeeper, lead_mask
from trainhooks.analyze.text import Fit
from trainhooks.checkpoints.opening import is_local
from trainhooks.checkpoints.suite import CheckpointRef
from trainhooks.core.file_maps import let_go
from trainhooks.lead.lead_sums import cut_index
from trainhooks.metrics.base import State
from trainhooks.metrics.record_info import record_values
from trainhooks.metrics.shared_sums import want_gram
from trainhooks.numerics.gram import mean_of_ids
from trainhooks.numerics.host import to_host


class CheckpointMeasurer:
    """Goes through a job's checkpoints in order of steps; its metrics remember the one before.

    A walk that begins in the middle first measures the checkpoint before (and, for metrics that were given, the first
    one too), so that its numbers are to the bit those of a walk from the start.

    Of the heads that are mapped files only the current one's pages stay in memory: those of the others go as they are
    read, and no file is mapped twice at a time.
    """

    def __init__(self, job: Job, *, skip: frozenset[int] = frozenset()) -> None:
        self._job, self._skip = job, skip
        metrics = job.metrics()
        self._metrics = [metric for metric in metrics if "sketch" not in metric.needs]
        self._rows = job.final_rows
        self._final_at: OpenedCheckpoint | None = None
        self._opened: WeakValueDictionary[int, OpenedCheckpoint] = WeakValueDictionary()
        self._ends: list[OpenedCheckpoint] = []
        self._standins: StandIns = {}
        self._following: OpenedCheckpoint | None = None
        self._initial: tuple[int, Tensor] | None = None
        self._previous: tuple[int, Tensor] | None = None
        self._final: Tensor | None = None
        self._final_mean: Tensor | None = None
        self._groups = GroupSums(job.groups, sketch_size=job.sketch_size)
        self._fit: Fit | None = None
        self._lead: LeadKeeper | None = None

    @torch.no_grad()
    def measure(self, indices: Sequence[int]) -> Iterator[Measurement | Failed]:
        """The numbers of these entries, ascending; a checkpoint that fails is passed over."""
        self._go_before(indices[0])
        entries = [self._job.entries[index] for index in indices]
        for entry, following in zip_longest(entries, entries[1:]):
            try:
                opened = self._open(entry)
                text = self._text_values(entry)
                groups = self._groups.measure(opened, self._final_opened())
                self._expect(following)
                values = self._head_values(entry, opened)
                host = {**to_host({**values, **groups.to_final}), **text}
                assert self._previous is not None
                head = self._previous[1]
                yield Measurement(entry.step, host, norms=groups.norms.numpy(), sketch=groups.sketch.numpy(), head=head)
            except FAILURES as error:
                yield Failed(entry.step, f"{type(error).__name__}: {_first_line(error)}")

    def _go_before(self, index: int) -> None:
        before = [entry for entry in self._job.entries[:index] if entry.step not in self._skip]
        if self._previous is not None or not before:
            return
        self._read_text_before(before)
        first = next((entry for entry in before if self._can_be_read(entry)), None)
        if first is None:
            return
        self._initial = (first.step, self._keep_open(first).read_head())
        near = next(entry for entry in reversed(before) if entry is first or self._can_be_read(entry))
        if self._job.make_metrics is not None and near is not first:
            self._head_values(first, self._open(first))
        self._head_values(near, self._open(near))

    def _read_text_before(self, before: Sequence[CheckpointRef]) -> None:
        """The fit that the next transfer starts from: of the nearest checkpoint before that can be measured."""
        for entry in reversed(before if self._job.text is not None else ()):
            with suppress(*FAILURES):
                self._open(entry)
                self._text_values(entry)
                return

    def _text_values(self, entry: CheckpointRef) -> dict[str, np.ndarray]:
        """All figures of the checkpoint's model on the text; its fit is the one before from then on."""
        if self._job.text is None:
            return {}
        found, self._fit = self._job.text.measure_after(entry.location, before=self._fit)
        return {name: np.asarray(value) for name, value in found.items()}

    def _can_be_read(self, entry: CheckpointRef) -> bool:
        try:
            self._open(entry).read_head()
        except FAILURES:
            return False
        return True

    def _expect(self, entry: CheckpointRef | None) -> None:
        """Open the next checkpoint of a disk and have it read ahead; what is wrong with it is said at its turn."""
        if entry is not None and is_local(entry.location):
            with suppress(*FAILURES):
                self._following = self._open(entry)
                self._groups.expect(self._following)

    def _open(self, entry: CheckpointRef) -> OpenedCheckpoint:
        """The checkpoint, as long as it is held by someone the one that was opened before."""
        found = self._opened.get(entry.step)
        if found is None:
            known: Any = {"shape": self._job.shape, "known": self._standins, "whole": self._job.params != HEAD}
            found = open_entry(self._job.suite, entry, head=self._job.head, **known)
            self._opened[entry.step] = found
        return found

    def _keep_open(self, entry: CheckpointRef) -> OpenedCheckpoint:
        """The same, its head kept from now on, but not in memory."""
        found = self._open(entry)
        let_go(found.stored_head().data_ptr())
        self._ends.append(found)
        return found

    def _final_opened(self) -> OpenedCheckpoint:
        if self._final_at is None:
            self._final_at = self._keep_open(self._job.final)
        return self._final_at

    def _head_values(self, entry: CheckpointRef, opened: OpenedCheckpoint) -> dict[str, Tensor | float]:
        """All figures of the output embedding; it is the previous one from then on."""
        weight = opened.read_head()
        final = self._final_head()
        opened.standin.load_tensors({opened.standin.head_name: weight, **opened.read_around()})
        state = State(
            step=entry.step,
            model=opened.standin.model,
            head=opened.standin.head,
            groups={},
            initial_head=None if self._initial is None or self._initial[0] == entry.step else self._initial[1],
            previous_head=None if self._previous is None else self._previous[1],
        )
        want_gram(state)  # numbers must not depend on which checkpoint a walk began with
        values = record_values(state, loss=None, learning_rate=None, skipped=False)
        del values["skipped"]  # not known from a checkpoint
        for metric in self._metrics:
            values |= metric.compute(state)
        del state  # and the sums that metrics have shared, before the lead takes its memory
        values |= head_to_final(weight, final, self._rows, final_mean=self._final_mean)
        self._initial = self._initial or (entry.step, self._keep_open(entry).read_head())
        values |= self._lead_values(entry, weight)
        self._previous = (entry.step, weight)
        let_go(weight.data_ptr())
        return values

    def _final_head(self) -> Tensor:
        """The final output embedding, to compare with."""
        if self._final is None:
            opened = self._final_opened()
            self._final_mean = mean_of_ids(opened.read_head(), self._rows.ids)
            self._final = opened.reference_head()
        return self._final

    def _lead_values(self, entry: CheckpointRef, weight: Tensor) -> Mapping[str, Tensor]:
        """What a verdict needs; the ends are read before the first."""
        if lead_mask(self._job) is None:
            return {}
        if self._lead is None:
            assert self._initial is not None
            first_step, first = self._initial
            cut_step, cut = self._read_cut(first_step)
            ends: Any = {"first": first, "final": self._final_head(), "cut": cut}
            self._lead = LeadKeeper(self._job, **ends, first_step=first_step, cut_step=cut_step)
        return self._lead.values(entry.step, weight)

    def _read_cut(self, first_step: int) -> tuple[int, Tensor | None]:
        """The last checkpoint within 3/4 of the way, and its step; -1 where it cannot be read or there is none."""
        entries = [entry for entry in self._job.entries if entry.step >= first_step]
        index = cut_index([entry.step for entry in entries])
        if index is None or entries[index].step in self._skip or not self._can_be_read(entries[index]):
            return -1, None
        return entries[index].step, self._keep_open(entries[index]).reference_head()


def run_chunk(job: Job, indices: tuple[int, ...], skip: frozenset[int]) -> list[Measurement | Failed]:
    """What a worker does: measure some of a job's entries. `skip` are steps that must not be touched."""
    torch.set_num_threads(job.threads)
    found = CheckpointMeasurer(job, skip=skip).measure(indices)
    return [replace(one, head=None) if isinstance(one, Measurement) else one for one in found]


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no message"
