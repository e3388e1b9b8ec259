"""The recorder: all the live logic, independent of the training loop that calls it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainhooks.capture import to_host, watch_head_input
from trainhooks.checks import check_when, checked_counts, checked_metrics, checked_rows, padded_texts
from trainhooks.cost import Budget, Cost, Stopwatch
from trainhooks.distributed import is_sharded, whole
from trainhooks.followed import Followed
from trainhooks.labels import LabelTally
from trainhooks.metrics.base import Metric, State
from trainhooks.metrics.defaults import default_metrics
from trainhooks.metrics.group_convergence import FINAL_VARIABLES
from trainhooks.metrics.norms import GROUP_NORMS, sharded_group_norms
from trainhooks.metrics.own import OWN_VARIABLES, own_values, what_is_not_finite
from trainhooks.model import OutputEmbedding
from trainhooks.outlets import Outlets
from trainhooks.plan import Plan, plan_run
from trainhooks.provenance import provenance_of
from trainhooks.references import References, head_bytes
from trainhooks.restart import Restart, load_metric_states, metric_states
from trainhooks.schedule import Schedule
from trainhooks.sinks import Sink, StoreSink
from trainhooks.sketch import DEFAULT_SIZE, Sketcher
from trainhooks.store import Layout, Writing
from trainhooks.timetable import Timetable
from trainhooks.tokens import TokenCounts

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

    Record t is the model after t optimizer updates; record 0 is taken at the first `begin_step`, so N updates
    give N + 1 records. Nothing here changes training by a bit: no gradients, no random numbers, no hooks that
    return anything.

    - `store`: path of a Zarr store (see `store/SPEC.md`); `mode` is "create", "overwrite" or "resume"; `writing` says
      how durable, with which memory and threads (see `trainhooks.store.Writing`).
    - `counts`: the corpus' token counts, for the frequency probe. Shorter than the output embedding where that is
      padded: then pass the tokenizer's size as `vocab_size`. `exclude` leaves token ids out (special tokens),
      `min_count` those counted less often.
    - `schedule`: when to record; `snapshot_schedule` and each metric's own `schedule` override it for their part.
    - `metrics`: instances; None takes `default_metrics`. Given ones choose their own rows: `min_count` and `exclude`
      beside them are refused.
    - `precision`: of the stored matrices: "float32", "bfloat16" or a number of kept mantissa bits (1-23).
    - `head`: the output embedding's module name, where it cannot be found. `groups`: further parameter groups by
      glob patterns (see `trainhooks.model.parameter_groups`).
    - `total_steps`: the run's updates; with it the plan is exact and free disk is checked for the whole run;
      `force` begins on a disk that is too small.
    - `provenance`: JSON for the store's attributes (configuration, seed, hashes); `token_texts`: decoded text of
      each id; with counts, the default metrics then hold the probe against token covariates (`CovariateBaseline`).

    - `budget`: the share of the loop's time that recording may take, 0.02 for 2 %; None (default) for any. Where it
      takes more, metrics are computed less often, and the store says which and when (`recorder.spacing`); a
      `trainhooks.cost.Budget` may allow fewer snapshots too.

    With several processes (DDP, `fully_shard`, tensor parallelism) every rank makes a recorder of the model that is
    wrapped already, and calls every moment and `state_dict`; see `trainhooks.distributed`. Rank 0 has the sinks; of a
    sharded head each rank writes its own rows, where all see the store's folder. `loss` is what rank 0 says.

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
        writing: Writing | None = None,
        budget: float | Budget | None = None,
    ) -> None:
        check_when(total_steps, schedule=schedule, snapshot_schedule=snapshot_schedule)
        self.total_steps = total_steps
        self.step = 0
        self._model = model
        self._followed = Followed(model, name=head, patterns=groups)
        self._ranks = self._followed.ranks
        self._vocab, self._dim = self.head.weight.shape
        counts = checked_counts(counts)
        self._counts = None if counts is None else counts.for_rows(self._vocab, vocab_size=vocab_size)
        texts = None if token_texts is None else padded_texts(token_texts, rows=self._vocab)
        rows = checked_rows(min_count=min_count, exclude=exclude, metrics_given=metrics is not None)
        if metrics is None:
            metrics = default_metrics(self._counts, min_count=min_count, exclude=exclude, token_texts=texts)
        self._metrics = checked_metrics(list(metrics), own=(*OWN_VARIABLES, *FINAL_VARIABLES))
        self._timetable = Timetable(
            self._metrics, schedule=schedule, snapshot_schedule=snapshot_schedule, budget=budget, ranks=self._ranks
        )
        self._needs = frozenset[str]().union(*(metric.needs for metric in self._metrics))
        self._compares_heads = bool(self._needs & {"initial_head", "previous_head"})
        self._sketcher = Sketcher(self._followed.groups, size=sketch_size) if store or "sketch" in self._needs else None
        to_store = None if store is None else StoreSink(store, mode=mode, writing=writing)
        self._outlets = Outlets(sinks, store=to_store, ranks=self._ranks)
        self._force, self._precision = force, precision
        self._provenance = {**provenance_of(model, counts, given=provenance), **rows}
        self._token_texts = texts
        self._references = References()
        self._recorded: int | None = None
        self._restart: Restart | None = None
        self._labels = LabelTally(self._vocab, ranks=self._ranks)
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
        with self._watch, self._followed.plain_arithmetic():
            due = self._timetable.metrics_due("before_update", self.step + 1)
            if due:
                state = self._state(self.step + 1)
                self._before = {name: value for m in due for name, value in self._timetable.compute(m, state).items()}

    def observe(self, hidden: Tensor) -> None:
        """Show what enters the head, [..., dim], where the loss bypasses the head's module (fused losses).

        Call it in each forward pass of a training step; where the head's own forward runs, a hook does.
        """
        if self._closed or not self._opened:
            return
        with self._watch, self._followed.plain_arithmetic():
            for metric in self._timetable.observers_due(self.step + 1):
                metric.observe(whole(hidden.detach()), step=self.step)

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
            if self._timetable.record_due(self.step):
                self._record(loss=loss, learning_rate=learning_rate, skipped=skipped)
        self._watch.step_done()
        self._timetable.review(self.step, watch=self._watch)

    def close(self, *, wait_seconds: float = WAIT_SECONDS) -> None:
        """End the run: what needs its last record is computed, sinks are closed. May be called twice.

        Not a collective. Where ranks write rows of their own, rank 0 waits `wait_seconds` for their last ones and then
        goes on without the records that are not whole.
        """
        if self._hook is not None:
            self._hook.remove()
        if self._closed or not self._opened:
            self._closed = True
            return
        self._closed = True
        with self._watch, closing(self._outlets):
            if self._ranks.first:
                self._finish(wait_seconds=wait_seconds)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        # after an error another rank may be gone, and what it has not written will not come
        self.close(wait_seconds=WAIT_SECONDS if error is None else 1.0)

    def add_sink(self, sink: Sink) -> None:
        """Add a sink before the first step; only rank 0 uses it. Raises RuntimeError after it."""
        if self._opened:
            raise RuntimeError("sinks are opened at the first step; add them before it.")
        self._outlets.add(sink)

    @property
    def head(self) -> OutputEmbedding:
        """The output embedding that is followed."""
        return self._followed.head

    @property
    def cost(self) -> Cost:
        """What the recorder has cost so far."""
        return self._watch.cost

    @property
    def durable_step(self) -> int | None:
        """The last step up to which every record is safe in the store; None without a store or a record."""
        return self._outlets.durable_step

    def plan(self) -> Plan:
        """What the run will take. Raises ValueError where a schedule never fires within `total_steps`."""
        store = self._outlets.store
        return plan_run(
            self._timetable.schedules,
            total_steps=self.total_steps,
            layout=None if store is None else self._layout(),
            matrix_bytes=4 * self._vocab * self._dim,
            queue_bytes=0 if store is None else store.writing.memory_bytes(self._layout()),
            reference_bytes=head_bytes(self._needs, vocab=self._vocab, dim=self._dim),
            gathered_bytes=self.head.weight.nbytes if is_sharded(self.head.weight) else 0,
            sketch_bytes=0 if self._sketcher is None else 4 * len(self._followed.groups) * self._sketcher.size,
            kept=[metric.kept_bytes(self._state(self.step)) for metric in self._metrics],
        )

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold so that a restarted run goes on as if it had never stopped.

        With several ranks all of them call it (label counts are summed); rank 0's answer is the one to keep.
        """
        return {
            "step": self.step,
            "begun": self._opened or self._restart is not None,
            "recorded": self._recorded,
            "label_counts": self._labels.state_dict(),
            "learning_rate_sum": self._learning_rate_sum,
            "references": self._references.state_dict(),
            "metrics": metric_states(self._metrics),
            "thinning": self._timetable.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after `state["step"]`: the store, opened with mode="resume", is cut there.

        Raises RuntimeError after the first step.
        """
        if self._opened:
            raise RuntimeError("load_state_dict() must come before the first begin_step().")
        self.step = int(state["step"])
        if (restart := Restart.of(state)) is None:
            return
        self._restart = restart
        self._labels.load_state_dict(state["label_counts"])
        self._learning_rate_sum = state["learning_rate_sum"]
        self._references.load_state_dict(dict(state["references"]), device=self.head.weight.device)
        load_metric_states(self._metrics, state)
        self._timetable.load_state_dict(state.get("thinning"))

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise RuntimeError("this recorder is closed: make a new one, with mode='resume' to go on with its store.")

    def _follow(self) -> None:
        """Look the parameters up again where the model has got new ones (`load_state_dict(assign=True)`, tying)."""
        if self._opened and self._followed.is_current:
            return
        before = self.head.module
        self._followed.look_again(step=self.step)
        if self._hook is not None and self.head.module is not before:
            self._hook.remove()
            self._hook = watch_head_input(self.head.module, self.observe)

    def _open(self) -> None:
        self._follow()
        plan = self.plan()
        self._outlets.open(self._layout(), plan=plan, weight=self.head.weight, restart=self._restart, force=self._force)
        self._opened = True
        if self._restart is None:
            if self._timetable.record_due(0):
                self._record(loss=None, learning_rate=None, skipped=False)
            else:  # what is called initial is the state before the first update, recorded or not
                self._remember()

    @torch.no_grad()
    def _remember(self) -> None:
        if self._ranks.measures:
            head = self._followed.whole_head() if self._compares_heads else None
            self._references.advance(head=head, sketch=self._followed.sketch(self._sketcher), needs=self._needs)

    def _layout(self) -> Layout:
        final = () if self._sketcher is None else FINAL_VARIABLES
        return Layout(
            vocab=self._vocab,
            dim=self._dim,
            groups=tuple(self._followed.groups),
            sketch_size=0 if self._sketcher is None else self._sketcher.size,
            variables=(*OWN_VARIABLES, *self._timetable.variables, *final),
            precision=self._precision,
            attributes={**self._provenance, "output_embedding": self.head.name, "tied": self.head.tied},
            token_count=self._counts,
            token_text=self._token_texts,
        )

    def _state(self, step: int, *, sketch: Tensor | None = None, label_counts: Tensor | None = None) -> State:
        return self._followed.state(
            step,
            references=self._references,
            learning_rate_sum=self._learning_rate_sum,
            sketch=sketch,
            label_counts=label_counts,
        )

    @torch.no_grad()
    def _record(self, *, loss: Tensor | float | None, learning_rate: float | None, skipped: bool) -> None:
        with self._followed.plain_arithmetic():
            self._follow()
            self._measure(loss=loss, learning_rate=learning_rate, skipped=skipped)

    def _measure(self, *, loss: Tensor | float | None, learning_rate: float | None, skipped: bool) -> None:
        step = self.step
        sketch = self._followed.sketch(self._sketcher) if self._ranks.measures else None
        state = self._state(step, sketch=sketch, label_counts=self._labels.total())
        if self._ranks.sharded:
            state.shared[GROUP_NORMS] = sharded_group_norms(self._followed.groups, ranks=self._ranks)
        snapshot, copy = self._copies(step)
        values = {**own_values(state, loss=loss, learning_rate=learning_rate, skipped=skipped), **self._before}
        for metric in self._timetable.metrics_due("after_update", step):
            values |= self._timetable.compute(metric, state)
        self._learning_rate_sum = None if self._learning_rate_sum is None else 0.0
        self._before = {}
        self._recorded = step
        if self._ranks.measures:
            self._write(state, values, snapshot=snapshot)
            self._references.advance(head=copy, sketch=sketch, needs=self._needs)

    def _copies(self, step: int) -> tuple[Tensor | None, Tensor | None]:
        """What this rank stores of the head, and the whole head where later records compare with it."""
        if not self._ranks.measures:
            return None, None
        stored, by_rows = self._timetable.take_snapshot(step), self._outlets.rows is not None
        return self._followed.copies(stored=stored, compared=self._compares_heads, by_rows=by_rows)

    def _write(self, state: State, values: dict[str, Tensor | float], *, snapshot: Tensor | None) -> None:
        sketch = state.sketch
        host = to_host(values if sketch is None else {**values, "": sketch})  # one transfer for all
        host_sketch = host.pop("").astype(np.float32) if sketch is not None else None
        host["recorder.milliseconds"] = np.array(1000 * self._watch.take_lap())
        host |= self._timetable.budget_values(self.cost)
        self._outlets.write(state, host, sketch=host_sketch, snapshot=snapshot)
        if weights := what_is_not_finite(host, sketch=host_sketch, groups=list(self._followed.groups)):
            self._warn_once("nonfinite", f"weights are not finite: {weights}. They are recorded as they are")
        if self._labels.foreign:
            self._warn_once("labels", f"labels beyond the {self._vocab} rows of the output embedding; not counted")

    def _finish(self, *, wait_seconds: float) -> None:
        if not self._outlets.wait(seconds=wait_seconds):
            self._warn_once("pieces", "other ranks have not written their rows of all records; those are left out")
        self._outlets.finish()

    def _warn_once(self, kind: str, text: str) -> None:
        if kind not in self._warned and self._ranks.first:
            self._warned.add(kind)
            warnings.warn(f"step {self.step}: {text} (said once).", RuntimeWarning, stacklevel=5)
