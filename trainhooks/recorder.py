"""The recorder: all the live logic, independent of the training loop that calls it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainhooks.capture import point_in_time, to_host, watch_head_input
from trainhooks.checks import check_length, check_schedule, checked_metrics, padded_texts
from trainhooks.cost import Cost, Stopwatch
from trainhooks.labels import LabelTally
from trainhooks.metrics.base import Metric, State
from trainhooks.metrics.defaults import default_metrics
from trainhooks.metrics.group_convergence import FINAL_VARIABLES, convergence_to_final
from trainhooks.model import find_output_embedding, parameter_at, parameter_groups
from trainhooks.plan import Plan, check_disk, count_firings, disk_bytes
from trainhooks.provenance import provenance_of
from trainhooks.references import References, head_bytes
from trainhooks.schedule import EveryStep, Schedule, Union
from trainhooks.sinks import Record, Sink, StoreSink
from trainhooks.sketch import DEFAULT_SIZE, Sketcher
from trainhooks.store import Layout, open_store
from trainhooks.tokens import TokenCounts
from trainhooks.variable import Variable

logger = logging.getLogger("trainhooks")

OWN_VARIABLES = (
    Variable("skipped", description="1 where the update was skipped (a scaler met an overflow), else 0"),
    Variable("loss", unit="nat", description="training loss of the update that led here, as the loop gave it"),
    Variable("learning_rate", description="learning rate of the update that led here, as the loop gave it"),
    Variable("nonfinite_rows", description="rows of the output embedding that hold NaN or inf"),
    Variable("recorder.milliseconds", unit="ms", description="time spent in the recorder since the last record"),
)


class Recorder:
    """Follows a model through its training: add it to the loop, and call its moments.

        with th.Recorder(model, store="run.zarr", counts=counts) as recorder:
            for inputs, labels in loader:
                recorder.begin_step(labels)
                loss = ...; loss.backward()
                recorder.before_update()
                optimizer.step(); optimizer.zero_grad()
                recorder.after_update(loss=loss)

    Record t is the model after t optimizer updates; record 0 is taken at the first `begin_step`, so N updates
    give N + 1 records. Nothing here changes training by a bit: no gradients, no random numbers, no hooks that
    return anything.

    - `store`: path of a Zarr store (see `store/SPEC.md`); `mode` is "create", "overwrite" or "resume".
    - `counts`: the corpus' token counts, for the frequency probe. Shorter than the output embedding where that is
      padded: then pass the tokenizer's size as `vocab_size`. `exclude` leaves token ids out (special tokens),
      `min_count` those counted less often.
    - `schedule`: when to record; `snapshot_schedule` and each metric's own `schedule` override it for their part.
    - `metrics`: instances; None takes `default_metrics`.
    - `precision`: of the stored matrices: "float32", "bfloat16" or a number of kept mantissa bits (1-23).
    - `head`: the output embedding's module name, where it cannot be found. `groups`: further parameter groups by
      glob patterns (see `trainhooks.model.parameter_groups`).
    - `total_steps`: the run's updates; with it the plan is exact and free disk is checked for the whole run.
      `force` lets a store be begun on a disk that is too small.
    - `provenance`: JSON for the store's attributes (configuration, seed, hashes); `token_texts`: text of each id.

    Raises ValueError for bad arguments and OSError for a store that can't be written or does not fit, always
    before a step has run.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        store: str | Path | None = None,
        counts: TokenCounts | np.ndarray | None = None,
        schedule: Schedule | None = None,
        snapshot_schedule: Schedule | None = None,
        metrics: Sequence[Metric] | None = None,
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
    ) -> None:
        self.head = find_output_embedding(model, name=head)
        check_length(total_steps)
        check_schedule(schedule, what="schedule")
        check_schedule(snapshot_schedule, what="snapshot_schedule")
        self.total_steps = total_steps
        self.step = 0
        self._model = model
        self._head_name, self._patterns = head, groups
        self._groups = parameter_groups(model, self.head, patterns=groups)
        self._vocab, self._dim = self.head.weight.shape
        if isinstance(counts, np.ndarray):
            counts = TokenCounts(counts)
        if counts is not None and not isinstance(counts, TokenCounts):
            raise ValueError(
                f"counts is a {type(counts).__name__}; pass th.TokenCounts, or a NumPy array with a count for each id."
            )
        self._counts = None if counts is None else counts.for_rows(self._vocab, vocab_size=vocab_size)
        self._schedule = EveryStep() if schedule is None else schedule
        self._snapshot_schedule = snapshot_schedule or self._schedule
        if metrics is None:
            metrics = default_metrics(self._counts, min_count=min_count, exclude=exclude)
        self._metrics = checked_metrics(list(metrics), own=(*OWN_VARIABLES, *FINAL_VARIABLES))
        self._due = Union((self._schedule, self._snapshot_schedule, *(m.schedule for m in self._metrics if m.schedule)))
        self._needs = frozenset[str]().union(*(metric.needs for metric in self._metrics))
        self._sketcher = Sketcher(self._groups, size=sketch_size) if store or "sketch" in self._needs else None
        self._store = None if store is None else StoreSink(store, mode=mode)
        self._sinks: list[Sink] = [*sinks, *([] if self._store is None else [self._store])]
        for sink in self._sinks:
            sink.check()
        self._mode, self._force, self._precision = mode, force, precision
        rows = {"min_count": min_count, "excluded_tokens": [int(token) for token in exclude]}
        self._provenance = {**provenance_of(model, counts, given=provenance), **rows}
        self._token_texts = None if token_texts is None else padded_texts(token_texts, rows=self._vocab)
        self._references = References()
        self._sketches: list[np.ndarray] = []
        self._recorded_steps: list[int] = []
        self._restart_step: int | None = None
        self._last_recorded: int | None = None
        self._labels = LabelTally(self._vocab)
        self._learning_rate_sum: float | None = None
        self._before: dict[str, Tensor | float] = {}
        self._watch = Stopwatch()
        self._hook = watch_head_input(self.head.module, self.observe) if "hidden" in self._needs else None
        self._opened = self._closed = False
        self._warned: set[str] = set()

    # -- the three moments ------------------------------------------------------------------------------------

    def begin_step(self, labels: Tensor | None = None) -> None:
        """Call before each forward pass; several in one update (gradient accumulation) are fine.

        `labels` are the ids that this pass is trained on, as the loss sees them, after the causal shift; negative
        ids are no labels. They count as seen once the update is done. The first call takes record 0.
        """
        self._refuse_when_closed()
        with self._watch:
            if labels is not None:
                self._labels.begin(labels)
            if not self._opened:
                self._open()
            if labels is not None:
                self._labels.add(labels)

    @torch.no_grad()
    def before_update(self) -> None:
        """Call when gradients are complete and parameters have not moved yet."""
        with self._watch, self._plain_arithmetic():
            due = [m for m in self._metrics if m.moment == "before_update" and self._is_due(m, self.step + 1)]
            if due:
                state = self._state(self.step + 1, sketch=None)
                self._before = {name: value for metric in due for name, value in metric.compute(state).items()}

    def observe(self, hidden: Tensor) -> None:
        """Show what enters the head, [..., dim], where the loss bypasses the head's module (fused losses).

        Call it in each forward pass of a training step; where the head's own forward runs, a hook does.
        """
        if self._closed or not self._opened:
            return
        with self._watch, self._plain_arithmetic():
            for metric in self._metrics:
                if "hidden" in metric.needs and self._is_due(metric, self.step + 1):
                    metric.observe(hidden.detach(), step=self.step)

    def after_update(
        self, *, loss: Tensor | float | None = None, learning_rate: float | None = None, skipped: bool = False
    ) -> None:
        """Call when the parameters have moved; `skipped` where they have not, because a scaler met an overflow.

        `loss` and `learning_rate` are those of this update, if the loop has them at hand.
        """
        self._refuse_when_closed()
        if not self._opened:
            raise RuntimeError("after_update() before the first begin_step(): record 0 would be missing.")
        with self._watch:
            self.step += 1
            self._labels.update_done(skipped=skipped)
            if learning_rate is not None:
                self._learning_rate_sum = (self._learning_rate_sum or 0.0) + (0.0 if skipped else learning_rate)
            if self._due(self.step):
                self._record(loss=loss, learning_rate=learning_rate, skipped=skipped)
        self._watch.step_done()

    def close(self) -> None:
        """End the run: what needs its last record is computed, sinks are closed. May be called twice."""
        if self._hook is not None:
            self._hook.remove()
        if self._closed or not self._opened:
            self._closed = True
            return
        self._closed = True
        with self._watch:
            try:
                if self._sketcher is not None:
                    self._finish()
            finally:
                for sink in self._sinks:
                    sink.close()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- around the run ---------------------------------------------------------------------------------------

    def add_sink(self, sink: Sink) -> None:
        """Add a sink before the first step. Raises RuntimeError after it."""
        if self._opened:
            raise RuntimeError("sinks are opened at the first step; add them before it.")
        self._sinks.insert(0, sink)

    @property
    def cost(self) -> Cost:
        """What the recorder has cost so far."""
        return self._watch.cost

    def plan(self) -> Plan:
        """What the run will take. Raises ValueError where a schedule never fires within `total_steps`."""
        records = count_firings(schedule=self._due, total_steps=self.total_steps, what="records")
        for metric in self._metrics:
            if metric.schedule is not None:
                name = type(metric).__name__
                count_firings(schedule=metric.schedule, total_steps=self.total_steps, what=name)
        snapshots = count_firings(schedule=self._snapshot_schedule, total_steps=self.total_steps, what="snapshots")
        disk = 0
        if self._store is not None:
            disk = disk_bytes(self._layout(), records=records, snapshots=snapshots)
        sketch = 0 if self._sketcher is None else 4 * len(self._groups) * self._sketcher.size
        kept = [metric.kept_bytes(self._state(self.step, sketch=None)) for metric in self._metrics]
        return Plan(
            records=records,
            snapshots=snapshots,
            disk_bytes=disk,
            device_bytes=head_bytes(self._needs, vocab=self._vocab, dim=self._dim)
            + 3 * sketch
            + sum(one.get("device", 0) for one in kept),
            host_bytes=4 * self._vocab * self._dim
            + (0 if self._store else sketch * (records or 1))
            + sum(one.get("host", 0) for one in kept),
        )

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold so that a restarted run goes on as if it had never stopped."""
        return {
            "step": self.step,
            "begun": self._opened or self._restart_step is not None,
            "recorded": self._recorded_steps[-1] if self._recorded_steps else None,
            "label_counts": self._labels.state_dict(),
            "learning_rate_sum": self._learning_rate_sum,
            "references": self._references.state_dict(),
            "metrics": [(type(metric).__name__, metric.state_dict()) for metric in self._metrics],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after `state["step"]`: the store, opened with mode="resume", is cut there.

        Raises RuntimeError after the first step.
        """
        if self._opened:
            raise RuntimeError("load_state_dict() must come before the first begin_step().")
        self.step = int(state["step"])
        if not state.get("begun", True):
            return  # saved before record 0: there is nothing to go on from
        self._restart_step = self.step
        self._last_recorded = state.get("recorded")
        self._labels.load_state_dict(state["label_counts"])
        self._learning_rate_sum = state["learning_rate_sum"]
        self._references.load_state_dict(dict(state["references"]), like=self.head.weight)
        kinds = [type(metric).__name__ for metric in self._metrics]
        saved = list(state.get("metrics", zip(kinds, ({} for _ in kinds), strict=True)))
        if [kind for kind, _ in saved] != kinds:
            raise ValueError(
                f"the state was saved with the metrics {[kind for kind, _ in saved]}, this recorder has {kinds}: "
                "go on with the same ones."
            )
        for metric, (_, own) in zip(self._metrics, saved, strict=True):
            metric.load_state_dict(own)

    # -- inside -----------------------------------------------------------------------------------------------

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise RuntimeError("this recorder is closed: make a new one, with mode='resume' to go on with its store.")

    def _plain_arithmetic(self) -> torch.autocast:
        """No autocast inside: the loop's choice of precision is not the metrics'."""
        return torch.autocast(self.head.weight.device.type, enabled=False)

    def _follow(self) -> None:
        """Look the parameters up again where the model has got new ones (`load_state_dict(assign=True)`, tying)."""
        if self._opened and parameter_at(self._model, self.head.name) is self.head.weight:
            return
        head = find_output_embedding(self._model, name=self._head_name)
        if head.weight.shape != self.head.weight.shape:
            raise ValueError(
                f"the output embedding was {tuple(self.head.weight.shape)} and is {tuple(head.weight.shape)} at step "
                f"{self.step}: a store holds one shape. Close this recorder and begin another store."
            )
        if self._hook is not None and head.module is not self.head.module:
            self._hook.remove()
            self._hook = watch_head_input(head.module, self.observe)
        self.head, self._groups = head, parameter_groups(self._model, head, patterns=self._patterns)

    def _open(self) -> None:
        self._follow()
        plan = self.plan()
        logger.info("recording %s", plan)
        if self._store is not None:
            if self._mode == "resume" and self._restart_step is None:
                raise ValueError(
                    'mode="resume" needs to know where: call load_state_dict() with the checkpoint\'s recorder '
                    'state first, or pass mode="overwrite" to start anew.'
                )
            check_disk(self._store.path, needed=plan.disk_bytes, force=self._force)
        self._check_restart()
        layout = self._layout()
        with ExitStack() as opened:  # where one sink fails, those that opened are closed
            for sink in self._sinks:
                sink.open(layout, restart_step=self._restart_step)
                opened.callback(sink.close)
            opened.pop_all()
        self._opened = True
        if self._restart_step is None:
            if self._due(0):
                self._record(loss=None, learning_rate=None, skipped=False)
            else:  # what is called initial is the state before the first update, recorded or not
                self._remember()

    def _check_restart(self) -> None:
        """Refuse a checkpoint that is ahead of the store: the records between the two would be missing."""
        if self._store is None or self._restart_step is None or self._last_recorded is None:
            return
        steps = open_store(self._store.path).steps
        last = int(steps[-1]) if len(steps) else None
        if last is None or last < self._last_recorded:
            raise ValueError(
                f"the checkpoint had recorded up to step {self._last_recorded}; {self._store.path} ends at step "
                f'{last}. Name the store that belongs to the checkpoint, or begin a new one with mode="create".'
            )

    @torch.no_grad()
    def _remember(self) -> None:
        sketch = None if self._sketcher is None else self._sketcher.sketch(self._groups)
        head = point_in_time(self.head.weight) if self._needs & {"initial_head", "previous_head"} else None
        self._references.advance(head=head, sketch=sketch, needs=self._needs)

    def _layout(self) -> Layout:
        variables = [*OWN_VARIABLES, *(v for metric in self._metrics for v in metric.variables)]
        if self._sketcher is not None:
            variables += FINAL_VARIABLES
        return Layout(
            vocab=self._vocab,
            dim=self._dim,
            groups=tuple(self._groups),
            sketch_size=0 if self._sketcher is None else self._sketcher.size,
            variables=tuple(variables),
            precision=self._precision,
            attributes={**self._provenance, "output_embedding": self.head.name, "tied": self.head.tied},
            token_count=self._counts,
            token_text=self._token_texts,
        )

    def _is_due(self, metric: Metric, step: int) -> bool:
        return (metric.schedule or self._schedule)(step)

    def _state(self, step: int, *, sketch: Tensor | None) -> State:
        return State(
            step=step,
            model=self._model,
            head=self.head,
            groups={group: [tensor for _, tensor in members] for group, members in self._groups.items()},
            initial_head=self._references.initial_head,
            previous_head=self._references.previous_head,
            sketch=sketch,
            initial_sketch=self._references.initial_sketch,
            previous_sketch=self._references.previous_sketch,
            label_counts=self._labels.counts,
            learning_rate_sum=self._learning_rate_sum,
        )

    @torch.no_grad()
    def _record(self, *, loss: Tensor | float | None, learning_rate: float | None, skipped: bool) -> None:
        with self._plain_arithmetic():
            self._follow()
            self._measure(loss=loss, learning_rate=learning_rate, skipped=skipped)

    def _measure(self, *, loss: Tensor | float | None, learning_rate: float | None, skipped: bool) -> None:
        step = self.step
        with_snapshot = self._snapshot_schedule(step)
        sketch = None if self._sketcher is None else self._sketcher.sketch(self._groups)
        copy = None
        if with_snapshot or self._needs & {"initial_head", "previous_head"}:
            copy = point_in_time(self.head.weight)
        state = self._state(step, sketch=sketch)
        values: dict[str, Tensor | float] = {"skipped": float(skipped), **self._before}
        # sums of float64 do not overflow where the rows themselves are finite
        values["nonfinite_rows"] = (~state.output_embedding.sum(dim=1, dtype=torch.float64).isfinite()).sum()
        if loss is not None:
            values["loss"] = loss.detach().squeeze() if isinstance(loss, Tensor) else loss
        values |= {"learning_rate": learning_rate} if learning_rate is not None else {}
        for metric in self._metrics:
            if metric.moment == "after_update" and self._is_due(metric, step):
                values |= metric.compute(state)
        # one transfer: scalars and sketch together
        host = to_host(values if sketch is None else {**values, "": sketch})
        host_sketch = host.pop("").astype(np.float32) if sketch is not None else None
        host["recorder.milliseconds"] = np.array(1000 * self._watch.take_lap())
        record = Record(
            step=step,
            values=host,
            groups=tuple(self._groups),
            sketch=host_sketch,
            snapshot=copy.cpu().numpy() if with_snapshot and copy is not None else None,
            label_counts=None if state.label_counts is None else state.label_counts.cpu().numpy(),
        )
        for sink in self._sinks:
            sink.write(record)
        self._recorded_steps.append(step)
        if self._store is None and host_sketch is not None:
            self._sketches.append(host_sketch)
        self._references.advance(head=copy, sketch=sketch, needs=self._needs)
        self._learning_rate_sum = None if self._learning_rate_sum is None else 0.0
        self._before = {}
        self._warn_if_not_finite(host, sketch=host_sketch)
        if self._labels.foreign:
            self._warn_once("labels", f"labels beyond the {self._vocab} rows of the output embedding; not counted")

    def _finish(self) -> None:
        if self._store is not None:
            kept = open_store(self._store.path)
            sketches, steps = kept.sketch, kept.steps
        else:
            sketches, steps = np.array(self._sketches), np.array(self._recorded_steps, dtype=np.int64)
        if len(steps) == 0:
            return
        final = convergence_to_final(torch.from_numpy(sketches), torch.from_numpy(steps))
        for sink in self._sinks:
            sink.finish({name: value.numpy() for name, value in final.items()})

    def _warn_if_not_finite(self, host: Mapping[str, np.ndarray], *, sketch: np.ndarray | None) -> None:
        rows = int(host["nonfinite_rows"])
        groups: list[str] = []
        if sketch is not None:
            groups = [group for group, sums in zip(self._groups, sketch, strict=True) if not np.isfinite(sums).all()]
        if rows or groups:
            where = f"{rows} rows of the output embedding" if rows else ""
            where += " and " if rows and groups else ""
            where += f"parameter groups {', '.join(groups)}" if groups else ""
            self._warn_once("nonfinite", f"weights are not finite: {where}. They are recorded as they are")

    def _warn_once(self, kind: str, text: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(f"step {self.step}: {text} (said once).", RuntimeWarning, stacklevel=5)
