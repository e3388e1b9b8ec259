"""The recorder: all the live logic, independent of the training loop that calls it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainhooks.core.schedule import Schedule
from trainhooks.core.token_counts import TokenCounts
from trainhooks.metrics.arguments import checked_metrics
from trainhooks.metrics.base import Metric
from trainhooks.metrics.defaults import default_metrics
from trainhooks.metrics.group_convergence import FINAL_VARIABLES
from trainhooks.metrics.record_info import RECORD_VARIABLES
from trainhooks.model import OutputEmbedding
from trainhooks.model.hooks import WatchedHead
from trainhooks.numerics.host import cpu_default_device
from trainhooks.numerics.sketch import DEFAULT_SIZE, Sketcher
from trainhooks.probe.row_selection import RowSelection
from trainhooks.recording.arguments import check_has_values, check_loss, check_when
from trainhooks.recording.budget import Budget
from trainhooks.recording.frozen_head import warn_where_frozen
from trainhooks.recording.label_counts import LabelCounter
from trainhooks.recording.metric_failures import Faults
from trainhooks.recording.metric_runner import MetricRunner
from trainhooks.recording.open_update import OpenUpdate, Said
from trainhooks.recording.pipeline import RecordPipeline
from trainhooks.recording.plan import Plan, host_measuring_bytes, plan_run, staging_plan, working_bytes
from trainhooks.recording.resume import ResumePoint, as_saved, load_metric_states, offered
from trainhooks.recording.run_description import RunDescription
from trainhooks.recording.sink_group import SinkGroup
from trainhooks.recording.timing import Cost, Stopwatch, device_clock
from trainhooks.recording.tracked_model import TrackedModel
from trainhooks.recording.update_measurement import UpdateMeasurement
from trainhooks.sinks import Sink, StoreSink
from trainhooks.store import Layout, Writing
from trainhooks.store.format.precision import kept_mantissa_bits

WAIT_SECONDS = 60.0  # for other ranks' last pieces


class Recorder:
    """Follows a model through its training: add it to the loop, and call its moments.

        with th.Recorder(model, store="run.zarr", counts=counts) as recorder:
            for inputs, labels in loader:
                recorder.begin_step(labels)
                loss = ...; loss.backward()
                recorder.before_update()
                optimizer.step(); optimizer.zero_grad()
                recorder.after_update(loss=loss)

    Record t is the model after t optimizer updates; record 0 is taken at the first `begin_step`, so N updates give
    N + 1 records. Nothing here changes training by a bit: no gradients, random numbers, or hooks that return anything.

    - `store`: path of a Zarr store; `mode`: "create", "overwrite" or "resume"; `writing`: how durable, on what means.
    - `counts`: the corpus' token counts, for the frequency probe; shorter than the output embedding where that is
      padded: then pass the tokenizer's size as `vocab_size`. `exclude` leaves ids out, `min_count` rare ones.
    - `schedule`: when to record; `snapshot_schedule` and each metric's own `schedule` override it for their part.
    - `metrics`: instances; None takes `default_metrics`, which says how often. Given ones choose their own rows:
      `min_count` and `exclude` beside them are refused. `extra_metrics` come beside either. One that raises is reported
      once, with the step, and its values are NaN from there on; `strict=True` raises instead.
    - `precision`: of the stored matrices: "float32", "bfloat16" or a number of kept mantissa bits (1-23).
    - `head`: the output embedding's module name, where it cannot be found. `groups`: more parameter groups, by globs.
    - `total_steps`: the run's updates; then the plan is exact and free disk is checked; `force` begins all the same.
    - `provenance`: JSON for the store's attributes (configuration, seed, hashes); `token_texts`: decoded text of
      each id; with counts, the default metrics then hold the probe against token covariates (`CovariateBaseline`).
    - `budget`: the share of the loop's time that recording may take, 0.02 for 2 %; None (default) for any. Where it
      takes more, metrics are computed less often, and the store says which and when; a `Budget` may thin snapshots too.

    With several processes (DDP, FSDP, tensor parallelism) every rank makes the same recorder of the model that is
    wrapped already, and calls every moment and `state_dict`; see `trainhooks.model.distributed`. Rank 0 has the sinks;
    of a sharded head each rank writes its own rows, where all see the store's folder. `loss` is what rank 0 says.

    Raises ValueError for bad arguments, OSError for a store that can't be written or does not fit, before any step.
    """

    @cpu_default_device()
    def __init__(
        self,
        model: nn.Module,
        *,
        store: str | Path | None = None,
        counts: TokenCounts | np.ndarray | RowSelection | None = None,
        schedule: Schedule | None = None,
        snapshot_schedule: Schedule | None = None,
        metrics: Sequence[Metric] | None = None,
        extra_metrics: Sequence[Metric] = (),
        sinks: Iterable[Sink] = (),
        precision: str | int = "float32",
        head: str | None = None,
        groups: Mapping[str, str | Sequence[str]] | None = None,
        vocab_size: int | None = None,
        min_count: int = 1,
        exclude: Sequence[int] = (),
        sketch_size: int = DEFAULT_SIZE,
        mode: str = "create",
        force: bool = False,
        total_steps: int | None = None,
        provenance: Mapping[str, object] | None = None,
        token_texts: Sequence[str] | None = None,
        writing: Writing | None = None,
        budget: float | Budget | None = None,
        strict: bool = False,
    ) -> None:
        check_when(total_steps, schedule=schedule, snapshot_schedule=snapshot_schedule)
        kept_mantissa_bits(precision)
        self.total_steps, self.step, self._model, self._force = total_steps, 0, model, force
        self._tracked = TrackedModel(model, name=head, patterns=groups)
        self._ranks = self._tracked.ranks
        with self._tracked.full_params():
            self._run = RunDescription.of(
                self._tracked,
                counts=counts,
                vocab_size=vocab_size,
                min_count=min_count,
                exclude=exclude,
                metrics_given=metrics is not None,
                token_texts=token_texts,
                precision=precision,
                provenance=provenance,
            )
        if metrics is None:
            metrics = default_metrics(self._run.rows, token_texts=self._run.token_text)
        self._metrics = checked_metrics([*metrics, *extra_metrics], own=(*RECORD_VARIABLES, *FINAL_VARIABLES))
        self._metric_runner = MetricRunner(
            self._metrics,
            schedule=schedule,
            snapshot_schedule=snapshot_schedule,
            budget=budget,
            ranks=self._ranks,
            faults=Faults(strict=strict, ranks=self._ranks),
            total_steps=total_steps,
        )
        to_store = None if store is None else StoreSink(store, mode=mode, writing=writing)
        self._sink_group = SinkGroup(sinks, store=to_store, ranks=self._ranks, overwrite=mode == "overwrite")
        self._connect(sketch_size=sketch_size, strict=strict)

    def _connect(self, *, sketch_size: int, strict: bool) -> None:
        """Put the parts together that measure and hand on, with nothing counted yet."""
        needs = frozenset[str]().union(*(metric.needs for metric in self._metrics))
        sketched = self._sink_group.store or "sketch" in needs
        self._sketcher = Sketcher(self._tracked.groups, size=sketch_size) if sketched else None
        conclude, first = self._metric_runner.conclude, self._ranks.is_rank0
        self._pipeline = RecordPipeline(self._sink_group, conclude=conclude, first=first, strict=strict)
        self._labels = LabelCounter(self._run.vocab, ranks=self._ranks)
        self._watch = Stopwatch()
        self._measuring = UpdateMeasurement(
            self._tracked,
            metric_runner=self._metric_runner,
            pipeline=self._pipeline,
            labels=self._labels,
            watch=self._watch,
            sketcher=self._sketcher,
        )
        self._restart: ResumePoint | None = None
        self._under_way: OpenUpdate | None = None
        self._unrecorded: dict[str, Any] | None = None
        self._opened = self._closed = False
        self._watched = WatchedHead(self.observe) if "hidden" in needs else None
        if self._watched is not None:
            self._watched.follow(self.head.module)

    def begin_step(self, labels: Tensor | None = None) -> None:
        """Call before each forward pass; several in one update (gradient accumulation) are fine.

        `labels` are the ids that this pass is trained on, as the loss sees them, after the causal shift; negative
        ids are no labels. They count as seen once the update is done. The first call takes record 0.
        """
        self._refuse_when_closed()
        with self._watch:
            self._pipeline.deliver()
            if labels is not None:
                self._labels.begin(labels)
            if not self._opened:
                with self._tracked.full_params():
                    self._open()
            if labels is not None:
                self._labels.add(labels)
            self._measuring.begin(self.step)

    @torch.no_grad()
    def before_update(self) -> None:
        """Call when gradients are complete and parameters have not moved yet."""
        due = self._metric_runner.metrics_due("before_update", self.step + 1)
        if due and self._watched is not None and self._ranks.is_rank0:
            self._watched.check_seen(step=self.step + 1)
        if due:
            with self._watch, self._tracked.no_autocast(), self._tracked.full_params(gradients=True):
                self._measuring.before_update(self.step + 1, due=due)

    def discard_step(self, *, last_pass: bool = False) -> None:
        """Take back what `begin_step` has counted since the last update, where its loss was never trained on.

        After an out-of-memory error that the loop catches, for one. `last_pass`: only the last forward pass's labels.
        """
        self._labels.discard(last_pass=last_pass)
        self._metric_runner.forget(last_pass=last_pass)

    def observe(self, hidden: Tensor) -> None:
        """Show what enters the head, [..., dim], where the loss bypasses the head's module (fused losses).

        Call it in each forward pass of a training step; where the head's own forward runs, a hook does.
        """
        if self._closed or not self._opened:
            return
        if self._watched is not None:
            self._watched.has_seen = True
        with self._watch, self._tracked.no_autocast():
            self._measuring.observe(hidden, step=self.step)

    def after_update(
        self, *, loss: Tensor | float | None = None, learning_rate: float | None = None, skipped: bool = False
    ) -> None:
        """Call when the parameters have moved; `skipped` where they have not, because a scaler met an overflow.

        `loss` and `learning_rate` are those of this update, if the loop has them at hand. Raises ValueError for a loss
        that is no single number.
        """
        self._refuse_when_closed()
        check_loss(loss)
        if not self._opened:
            raise RuntimeError("after_update() before the first begin_step(): record 0 would be missing.")
        with self._watch:
            measuring, rates = self._measuring, self._measuring.learning_rate_sum
            if learning_rate is not None:
                rates = (rates or 0.0) + (0.0 if skipped else learning_rate)
            due = self._metric_runner.record_due(self.step + 1)
            said = Said(loss, learning_rate, skipped)
            under_way = measuring.as_it_is(said=said, rates=rates) if due else None
            self._labels.update_done(skipped=skipped)
            measuring.update_done()
            # no call between these: a signal's handler that saves a checkpoint finds the whole update, or nothing of it
            self.step, measuring.learning_rate_sum, self._under_way = self.step + 1, rates, under_way
            if due:
                self._record(said)
        self._watch.step_done()
        self._metric_runner.review(self.step, watch=self._watch)

    @cpu_default_device()
    def close(self, *, wait_seconds: float = WAIT_SECONDS) -> None:
        """End the run: what needs its last record is computed, sinks are closed. May be called twice.

        In a forked child nothing is: the run goes on in its parent.

        Not a collective. Where ranks write rows of their own, rank 0 waits `wait_seconds` for their last ones and then
        goes on without the records that are not whole.
        """
        if self._watched is not None:
            self._watched.remove()
        forked = self._opened and os.getpid() != self._pid  # the run is the parent's
        nothing_open, self._closed = self._closed or not self._opened or forked, True
        if nothing_open:
            return
        with closing(self._sink_group), self._watch:  # sinks close also where the device has failed, its clock with it
            self._pipeline.finish(step=self.step, wait_seconds=wait_seconds)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        # after an error another rank may be gone, and what it has not written will not come
        self.close(wait_seconds=WAIT_SECONDS if error is None else 1.0)

    def add_sink(self, sink: Sink) -> None:
        """Add a sink before the first step; only rank 0 uses it. Raises RuntimeError after it."""
        if self._opened:
            raise RuntimeError("sinks are opened at the first step; add them before it.")
        self._sink_group.add(sink)

    _outlets = property(lambda self: self._sink_group)  # by its name of before, under which others have looked at it

    @property
    def head(self) -> OutputEmbedding:
        """The output embedding that is followed."""
        return self._tracked.head

    @property
    def cost(self) -> Cost:
        """What the recorder has cost so far."""
        return replace(self._watch.cost, writer_seconds=self._sink_group.cpu_seconds)

    @property
    def durable_step(self) -> int | None:
        """The last step up to which every record is safe in the store; None without a store or a record."""
        return self._sink_group.durable_step

    @cpu_default_device()
    def plan(self) -> Plan:
        """What the run will take. Raises ValueError where a schedule never fires within `total_steps`."""
        store, layout = self._sink_group.store, self._layout()
        with self._tracked.full_params():
            return plan_run(
                self._metric_runner.schedules,
                total_steps=self.total_steps,
                layout=None if store is None else layout,
                matrix_bytes=4 * self._run.vocab * self._run.dim,
                measuring_bytes=host_measuring_bytes(self._metrics, weight=self.head.weight),
                queue_bytes=0 if store is None else store.writing.memory_bytes(layout),
                fold_threads=1 if store is None else store.writing.fold_threads,
                staging_plan=staging_plan(layout, weight=self.head.weight, metrics=self._metrics),
                gathered_bytes=self._tracked.gathered_bytes,
                working_bytes=working_bytes(self._metrics, self._sketcher, weight=self.head.weight),
                sketch_bytes=4 * len(layout.groups) * layout.sketch_size,
                kept=[metric.kept_bytes(self._measuring.state(self.step)) for metric in self._metrics],
            )

    def flush(self) -> None:
        """Give the sinks every record so far; waits for the device."""
        self._pipeline.deliver(wait=True)

    @cpu_default_device()
    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold so that a restarted run goes on as if it had never stopped.

        With several ranks all of them call it (label counts are summed); rank 0's answer is the one to keep. Waits for
        the device, and until every record it knows of is durable, a minute at most.
        """
        self._pipeline.settle(step=self.step)
        now = self._under_way or self._measuring.as_it_is()
        unrecorded = {} if self._under_way else {"unrecorded": self._unrecorded}
        begun, labels = self._opened or self._restart is not None, self._labels.state_dict()
        state = {"step": self.step, "begun": begun, "label_counts": labels, **now.state_dict(), **unrecorded}
        return offered(state, begun=begun)

    @cpu_default_device()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after `state["step"]`, where a resumed store is cut. Raises RuntimeError after the first step."""
        if self._opened:
            raise RuntimeError("load_state_dict() must come before the first begin_step().")
        state = as_saved(state)
        self.step = int(state["step"])
        if (restart := ResumePoint.of(state)) is None:
            return
        self._restart = restart
        self._labels.load_state_dict(state["label_counts"])
        self._measuring.learning_rate_sum = state["learning_rate_sum"]
        self._measuring.references.load_state_dict(dict(state["references"]))
        load_metric_states(self._metrics, state)
        self._metric_runner.load_state_dict(state.get("controller"))
        self._unrecorded = state.get("unrecorded")

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise RuntimeError("this recorder is closed: make a new one, with mode='resume' to go on with its store.")

    def _follow(self) -> None:
        """Look the parameters up again where the model has got new ones (`load_state_dict(assign=True)`, tying)."""
        if not (self._opened and self._tracked.is_current):
            self._tracked.refresh(step=self.step)
            if self._watched is not None:
                self._watched.follow(self.head.module)
        if self._opened and self.head.weight.device != self._device:
            self._carry(self._layout())

    @cpu_default_device()
    def _open(self) -> None:
        self._follow()
        check_has_values(self.head.weight)
        layout, restart = self._layout(), self._restart
        self._metric_runner.agree(self.step, groups=(layout.groups, layout.sketch_size), restarts=restart)
        plan = self.plan()
        self._carry(layout)  # before the sinks: where there is no memory for it, nothing is left open
        self._sink_group.open(layout, plan=plan, weight=self.head.weight, restart=restart, force=self._force)
        self._opened, self._pid = True, os.getpid()
        if self._ranks.is_rank0:
            self._pipeline.standstill.told = warn_where_frozen(self.head, self._model.parameters(), step=self.step)
        if unrecorded := self._unrecorded:  # the checkpoint was saved while this record was being made
            self._unrecorded, self._measuring.before = None, dict(unrecorded["before"])
            self._record(Said(**{name: value for name, value in unrecorded.items() if name != "before"}))
        if restart is None and self._metric_runner.record_due(0):
            self._record(Said())
        elif restart is None:  # what is called initial is the state before the first update, recorded or not
            self._measuring.remember()

    def _carry(self, layout: Layout) -> None:
        """Records come from the head's device from here on."""
        self._device = self.head.weight.device
        self._pipeline.use_device(staging_plan(layout, weight=self.head.weight, metrics=self._metrics))
        self._measuring.references.move_to(self._pipeline.stager, device=self._device)
        self._watch.set_device_timer(device_clock(self._device))

    def _layout(self) -> Layout:
        runner = self._metric_runner
        return self._run.layout(self._tracked, self._sketcher, variables=runner.variables, schedules=runner.schedules)

    def _record(self, said: Said) -> None:
        with self._tracked.no_autocast(), self._tracked.full_params():
            self._follow()
            self._measuring.record(self.step, said=said)
            self._pipeline.deliver()
        self._under_way = None
