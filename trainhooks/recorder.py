"""The recorder: all the live logic, independent of the training loop that calls it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainhooks.capture import point_in_time, to_host, watch_head_input
from trainhooks.checks import check_same_shape, check_when, checked_counts, checked_metrics, checked_rows, padded_texts
from trainhooks.cost import REVIEW_STEPS, Budget, Cost, Stopwatch, Thinning
from trainhooks.distributed import Ranks, Rows, is_sharded, reshard, whole
from trainhooks.labels import LabelTally
from trainhooks.metrics.base import Metric, State
from trainhooks.metrics.defaults import default_metrics
from trainhooks.metrics.group_convergence import FINAL_VARIABLES, convergence_to_final
from trainhooks.metrics.norms import GROUP_NORMS, sharded_group_norms
from trainhooks.metrics.own import OWN_VARIABLES, budget_variables, own_values, what_is_not_finite
from trainhooks.model import find_output_embedding, parameter_at, parameter_groups
from trainhooks.plan import Plan, check_disk, plan_run
from trainhooks.provenance import provenance_of
from trainhooks.references import References, head_bytes
from trainhooks.restart import Restart, check_state_given, check_store, load_metric_states, metric_states
from trainhooks.schedule import EveryStep, Schedule, Union
from trainhooks.sinks import PieceSink, Record, Sink, StoreSink
from trainhooks.sketch import DEFAULT_SIZE, Sketcher
from trainhooks.store import Layout, Writing
from trainhooks.tokens import TokenCounts

logger = logging.getLogger("trainhooks")

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
        self.head = find_output_embedding(model, name=head)
        check_when(total_steps, schedule=schedule, snapshot_schedule=snapshot_schedule)
        self.total_steps = total_steps
        self.step = 0
        self._model = model
        self._head_name, self._patterns = head, groups
        self._groups = parameter_groups(model, self.head, patterns=groups)
        self._ranks = Ranks(model)
        self._vocab, self._dim = self.head.weight.shape
        counts = checked_counts(counts)
        self._counts = None if counts is None else counts.for_rows(self._vocab, vocab_size=vocab_size)
        self._schedule = EveryStep() if schedule is None else schedule
        self._snapshot_schedule = snapshot_schedule or self._schedule
        texts = None if token_texts is None else padded_texts(token_texts, rows=self._vocab)
        rows = checked_rows(min_count=min_count, exclude=exclude, metrics_given=metrics is not None)
        if metrics is None:
            metrics = default_metrics(self._counts, min_count=min_count, exclude=exclude, token_texts=texts)
        self._metrics = checked_metrics(list(metrics), own=(*OWN_VARIABLES, *FINAL_VARIABLES))
        parts = [*(type(metric).__name__ for metric in self._metrics), "snapshots"]
        budget = Budget(budget) if isinstance(budget, (int, float)) else budget
        self._thinning = None if budget is None else Thinning(budget, parts=parts)
        self._due = Union((self._schedule, self._snapshot_schedule, *(m.schedule for m in self._metrics if m.schedule)))
        self._needs = frozenset[str]().union(*(metric.needs for metric in self._metrics))
        self._sketcher = Sketcher(self._groups, size=sketch_size) if store or "sketch" in self._needs else None
        self._store = None if store is None else StoreSink(store, mode=mode, writing=writing)
        self._sinks: list[Sink] = [*sinks, *([] if self._store is None else [self._store])] if self._ranks.first else []
        self._rows: Rows | None = None
        for sink in self._sinks:
            sink.check()
        self._mode, self._force, self._precision = mode, force, precision
        self._provenance = {**provenance_of(model, counts, given=provenance), **rows}
        self._token_texts = texts
        self._references = References()
        self._sketches: list[np.ndarray] = []
        self._recorded_steps: list[int] = []
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
        with self._watch, self._plain_arithmetic():
            due = self._due_metrics("before_update", self.step + 1)
            if due:
                state = self._state(self.step + 1, sketch=None)
                self._before = {name: value for m in due for name, value in self._compute(m, state).items()}

    def observe(self, hidden: Tensor) -> None:
        """Show what enters the head, [..., dim], where the loss bypasses the head's module (fused losses).

        Call it in each forward pass of a training step; where the head's own forward runs, a hook does.
        """
        if self._closed or not self._opened:
            return
        with self._watch, self._plain_arithmetic():
            for metric in self._metrics:
                if "hidden" in metric.needs and self._is_due(metric, self.step + 1):
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
            if self._due(self.step):
                self._record(loss=loss, learning_rate=learning_rate, skipped=skipped)
        self._watch.step_done()
        self._review()

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
        with self._watch:
            try:
                if self._ranks.first:
                    self._finish(wait_seconds=wait_seconds)
            finally:
                with ExitStack() as closing:  # one that cannot be closed keeps no other from it
                    for sink in reversed(self._sinks):
                        closing.callback(sink.close)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        # after an error another rank may be gone, and what it has not written will not come
        self.close(wait_seconds=WAIT_SECONDS if error is None else 1.0)

    def add_sink(self, sink: Sink) -> None:
        """Add a sink before the first step; only rank 0 uses it. Raises RuntimeError after it."""
        if self._opened:
            raise RuntimeError("sinks are opened at the first step; add them before it.")
        if self._ranks.first:
            self._sinks.insert(0, sink)

    @property
    def cost(self) -> Cost:
        """What the recorder has cost so far."""
        return self._watch.cost

    @property
    def durable_step(self) -> int | None:
        """The last step up to which every record is safe in the store; None without a store or a record."""
        return None if self._store is None else self._store.durable_step

    def plan(self) -> Plan:
        """What the run will take. Raises ValueError where a schedule never fires within `total_steps`."""
        own = {type(metric).__name__: metric.schedule for metric in self._metrics if metric.schedule is not None}
        return plan_run(
            {"records": self._due, **own, "snapshots": self._snapshot_schedule},
            total_steps=self.total_steps,
            layout=None if self._store is None else self._layout(),
            matrix_bytes=4 * self._vocab * self._dim,
            queue_bytes=0 if self._store is None else self._store.writing.memory_bytes(self._layout()),
            reference_bytes=head_bytes(self._needs, vocab=self._vocab, dim=self._dim),
            gathered_bytes=self.head.weight.nbytes if is_sharded(self.head.weight) else 0,
            sketch_bytes=0 if self._sketcher is None else 4 * len(self._groups) * self._sketcher.size,
            kept=[metric.kept_bytes(self._state(self.step, sketch=None)) for metric in self._metrics],
        )

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold so that a restarted run goes on as if it had never stopped.

        With several ranks all of them call it (label counts are summed); rank 0's answer is the one to keep.
        """
        return {
            "step": self.step,
            "begun": self._opened or self._restart is not None,
            "recorded": self._recorded_steps[-1] if self._recorded_steps else None,
            "label_counts": self._labels.state_dict(),
            "learning_rate_sum": self._learning_rate_sum,
            "references": self._references.state_dict(),
            "metrics": metric_states(self._metrics),
            "thinning": None if self._thinning is None else self._thinning.state_dict(),
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
        if self._thinning is not None and state.get("thinning") is not None:
            self._thinning.load_state_dict(state["thinning"])

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
        reshard(self._model)
        head = find_output_embedding(self._model, name=self._head_name)
        check_same_shape(head.weight, before=self.head.weight, step=self.step)
        if self._hook is not None and head.module is not self.head.module:
            self._hook.remove()
            self._hook = watch_head_input(head.module, self.observe)
        self.head, self._groups = head, parameter_groups(self._model, head, patterns=self._patterns)

    def _open(self) -> None:
        self._follow()
        plan = self.plan()
        if self._store is not None:
            self._rows = self._ranks.rows(self.head.weight, folder=Path(self._store.path).parent)
            self._store.pieces = 1 if self._rows is None else self._rows.pieces
        with self._ranks.together("open the sinks"):
            if self._ranks.first:
                logger.info("recording %s", plan)
                self._open_sinks(plan)
        if self._store is not None and self._rows is not None:
            self._open_pieces(self._store, self._rows)
        self._opened = True
        if self._restart is None:
            if self._due(0):
                self._record(loss=None, learning_rate=None, skipped=False)
            else:  # what is called initial is the state before the first update, recorded or not
                self._remember()

    def _open_sinks(self, plan: Plan) -> None:
        if self._store is not None:
            check_state_given(self._restart, mode=self._mode)
            if self._store.folder is not None:
                check_disk(self._store.folder, needed=plan.disk_bytes, force=self._force)
            check_store(self._restart, path=self._store.path)
        layout = self._layout()
        with ExitStack() as opened:  # where one sink fails, those that opened are closed
            for sink in self._sinks:
                sink.open(layout, restart_step=None if self._restart is None else self._restart.step)
                opened.callback(sink.close)
            opened.pop_all()

    def _open_pieces(self, store: StoreSink, rows: Rows) -> None:
        attempt = self._ranks.tell(store.attempt if self._ranks.first else None)
        if rows.piece > 0:
            durability = store.writing.durability
            piece, pieces = rows.piece, rows.pieces
            self._sinks = [
                PieceSink(
                    store.path, piece=piece, pieces=pieces, rows=rows.rows, attempt=attempt, durability=durability
                )
            ]

    @torch.no_grad()
    def _remember(self) -> None:
        if self._ranks.measures:
            head = self._whole_head() if self._needs & {"initial_head", "previous_head"} else None
            self._references.advance(head=head, sketch=self._sketch(), needs=self._needs)

    def _whole_head(self) -> Tensor:
        return point_in_time(whole(self.head.matrix))

    def _sketch(self) -> Tensor | None:
        if self._sketcher is None:
            return None
        if not self._ranks.sharded:
            return self._sketcher.sketch(self._groups)
        device = self.head.weight.device
        return self._ranks.sum(self._sketcher.sketch_slices(self._ranks.slices(self._groups), device=device))

    def _layout(self) -> Layout:
        final = () if self._sketcher is None else FINAL_VARIABLES
        budgeted = () if self._thinning is None else budget_variables(self._thinning.parts)
        return Layout(
            vocab=self._vocab,
            dim=self._dim,
            groups=tuple(self._groups),
            sketch_size=0 if self._sketcher is None else self._sketcher.size,
            variables=(*OWN_VARIABLES, *budgeted, *(v for metric in self._metrics for v in metric.variables), *final),
            precision=self._precision,
            attributes={**self._provenance, "output_embedding": self.head.name, "tied": self.head.tied},
            token_count=self._counts,
            token_text=self._token_texts,
        )

    def _due_metrics(self, moment: str, step: int) -> list[Metric]:
        """What this rank computes of the record of `step` at a moment; what all ranks observe, all of them compute."""
        here = [m for m in self._metrics if m.moment == moment and (self._ranks.measures or "hidden" in m.needs)]
        return [metric for metric in here if self._is_due(metric, step)]

    def _is_due(self, metric: Metric, step: int) -> bool:
        scheduled = (metric.schedule or self._schedule)(step)
        return scheduled and (self._thinning is None or self._thinning.allows(self._metrics.index(metric), step))

    def _compute(self, metric: Metric, state: State) -> Mapping[str, Tensor | float]:
        if self._thinning is None:
            return metric.compute(state)
        with self._thinning.taking(self._metrics.index(metric), state.step):
            return metric.compute(state)

    def _snapshot_due(self, step: int) -> bool:
        if self._thinning is None or not self._snapshot_schedule(step):
            return self._snapshot_schedule(step)
        part = len(self._metrics)
        if not self._thinning.allows(part, step):
            return False
        with self._thinning.taking(part, step):
            return True

    def _review(self) -> None:
        """Thin what is too dear: rank 0 decides, at steps that all ranks know, and it holds from the next one on."""
        if self._thinning is None or self.step % REVIEW_STEPS:
            return
        part = self._ranks.tell(self._thinning.excess(self.cost) if self._ranks.first else None)
        if part is not None:
            self._thinning.thin(part)
            what, spacing = self._thinning.parts[part], self._thinning.spacing[part]
            logger.info("step %d: over budget; %s every %d updates at most from here", self.step, what, spacing)

    def _state(self, step: int, *, sketch: Tensor | None, label_counts: Tensor | None = None) -> State:
        return State(
            step=step,
            model=self._model,
            head=self.head.gathered_around(),
            groups={group: [tensor for _, tensor in members] for group, members in self._groups.items()},
            initial_head=self._references.initial_head,
            previous_head=self._references.previous_head,
            sketch=sketch,
            initial_sketch=self._references.initial_sketch,
            previous_sketch=self._references.previous_sketch,
            label_counts=label_counts,
            learning_rate_sum=self._learning_rate_sum,
            ranks=self._ranks,
        )

    @torch.no_grad()
    def _record(self, *, loss: Tensor | float | None, learning_rate: float | None, skipped: bool) -> None:
        with self._plain_arithmetic():
            self._follow()
            self._measure(loss=loss, learning_rate=learning_rate, skipped=skipped)

    def _measure(self, *, loss: Tensor | float | None, learning_rate: float | None, skipped: bool) -> None:
        step = self.step
        sketch = self._sketch() if self._ranks.measures else None
        state = self._state(step, sketch=sketch, label_counts=self._labels.total())
        if self._ranks.sharded:
            state.shared[GROUP_NORMS] = sharded_group_norms(self._groups, ranks=self._ranks)
        snapshot, copy = self._copies(step)
        values = {**own_values(state, loss=loss, learning_rate=learning_rate, skipped=skipped), **self._before}
        for metric in self._due_metrics("after_update", step):
            values |= self._compute(metric, state)
        self._learning_rate_sum = None if self._learning_rate_sum is None else 0.0
        self._before = {}
        self._recorded_steps.append(step)
        if self._ranks.measures:
            self._write(state, values, snapshot=snapshot)
            self._references.advance(head=copy, sketch=sketch, needs=self._needs)

    def _copies(self, step: int) -> tuple[Tensor | None, Tensor | None]:
        """What this rank stores of the head, and the whole head where later records compare with it."""
        if not self._ranks.measures:
            return None, None
        due = self._snapshot_due(step)
        by_rows = self._rows is not None
        compared = bool(self._needs & {"initial_head", "previous_head"})
        copy = self._whole_head() if compared or (due and not by_rows) else None
        if not (due and by_rows):
            return copy if due else None, copy
        part = self._ranks.part(self.head.weight)
        return None if part is None else point_in_time(part.values), copy

    def _write(self, state: State, values: dict[str, Tensor | float], *, snapshot: Tensor | None) -> None:
        sketch, counts = state.sketch, state.label_counts
        host = to_host(values if sketch is None else {**values, "": sketch})  # one transfer for all
        host_sketch = host.pop("").astype(np.float32) if sketch is not None else None
        host["recorder.milliseconds"] = np.array(1000 * self._watch.take_lap())
        if self._thinning is not None:
            spacing = np.array(self._thinning.spacing, dtype=np.float64)
            host |= {"recorder.share": np.array(self.cost.fraction), "recorder.spacing": spacing}
        record = Record(
            step=state.step,
            values=host,
            groups=tuple(self._groups),
            sketch=host_sketch,
            snapshot=None if snapshot is None else snapshot.cpu().numpy(),
            label_counts=None if counts is None else counts.cpu().numpy(),
            rows=None if self._rows is None else self._rows.rows,
        )
        for sink in self._sinks:
            sink.write(record)
        if self._store is None and host_sketch is not None:
            self._sketches.append(host_sketch)
        if weights := what_is_not_finite(host, sketch=host_sketch, groups=list(self._groups)):
            self._warn_once("nonfinite", f"weights are not finite: {weights}. They are recorded as they are")
        if self._labels.foreign:
            self._warn_once("labels", f"labels beyond the {self._vocab} rows of the output embedding; not counted")

    def _finish(self, *, wait_seconds: float) -> None:
        by_rows = self._store if self._rows is not None and self._recorded_steps else None
        if by_rows is not None and not by_rows.wait(self._recorded_steps[-1], seconds=wait_seconds):
            self._warn_once("pieces", "other ranks have not written their rows of all records; those are left out")
        if self._sketcher is None:
            return
        kept = None if self._store is None else self._store.read()
        sketches = np.array(self._sketches) if kept is None else kept.mapped_sketch()
        steps = np.array(self._recorded_steps, dtype=np.int64) if kept is None else kept.steps
        if len(steps):
            final = convergence_to_final(torch.from_numpy(sketches), torch.from_numpy(steps))
            for sink in self._sinks:
                sink.finish({name: value.numpy() for name, value in final.items()})

    def _warn_once(self, kind: str, text: str) -> None:
        if kind not in self._warned and self._ranks.first:
            self._warned.add(kind)
            warnings.warn(f"step {self.step}: {text} (said once).", RuntimeWarning, stacklevel=5)
