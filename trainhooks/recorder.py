"""The recorder: all the live logic, independent of the training loop that calls it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainhooks.capture import add_label_counts, point_in_time, to_host
from trainhooks.cost import Cost, Stopwatch
from trainhooks.metrics.base import Metric, State
from trainhooks.metrics.defaults import default_metrics
from trainhooks.metrics.group_convergence import FINAL_VARIABLES, convergence_to_final
from trainhooks.model import find_output_embedding, parameter_groups
from trainhooks.plan import Plan, check_disk, count_firings, disk_bytes
from trainhooks.provenance import provenance_of
from trainhooks.references import NEEDS, References, head_bytes
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
        self.total_steps = total_steps
        self.step = 0
        self._model = model
        self._groups = parameter_groups(model, self.head, patterns=groups)
        self._vocab, self._dim = self.head.weight.shape
        if isinstance(counts, np.ndarray):
            counts = TokenCounts(counts)
        self._counts = None if counts is None else counts.for_rows(self._vocab, vocab_size=vocab_size)
        self._schedule = EveryStep() if schedule is None else schedule
        self._snapshot_schedule = snapshot_schedule or self._schedule
        if metrics is None:
            metrics = default_metrics(self._counts, min_count=min_count, exclude=exclude)
        self._metrics = _checked_metrics(metrics)
        self._due = Union((self._schedule, self._snapshot_schedule, *(m.schedule for m in metrics if m.schedule)))
        self._needs = frozenset[str]().union(*(metric.needs for metric in self._metrics))
        self._sketcher = Sketcher(self._groups, size=sketch_size) if store or "sketch" in self._needs else None
        self._store = None if store is None else StoreSink(store, mode=mode)
        self._sinks: list[Sink] = [*sinks, *([] if self._store is None else [self._store])]
        self._mode, self._force, self._precision = mode, force, precision
        self._provenance = provenance_of(model, counts, given=provenance)
        self._token_texts = None if token_texts is None else padded_texts(token_texts, rows=self._vocab)
        self._references = References()
        self._sketches: list[np.ndarray] = []
        self._recorded_steps: list[int] = []
        self._restart_step: int | None = None
        self._label_counts: Tensor | None = None
        self._pending_labels: Tensor | None = None
        self._learning_rate_sum: float | None = None
        self._before: dict[str, Tensor | float] = {}
        self._watch = Stopwatch()
        self._opened = self._closed = False
        self._warned: set[str] = set()
        if self._store is not None:
            self._store.check()

    # -- the three moments ------------------------------------------------------------------------------------

    def begin_step(self, labels: Tensor | None = None) -> None:
        """Call before each forward pass; several in one update (gradient accumulation) are fine.

        `labels` are the ids that this pass is trained on, as the loss sees them, after the causal shift; negative
        ids are no labels. They count as seen once the update is done. The first call takes record 0.
        """
        with self._watch:
            if labels is not None and self._pending_labels is None:
                self._pending_labels = torch.zeros(self._vocab + 1, dtype=torch.int64, device=labels.device)
                if self._label_counts is None:
                    self._label_counts = self._pending_labels[1:].clone()
            if not self._opened:
                self._open()
            if labels is not None and self._pending_labels is not None:
                add_label_counts(self._pending_labels, labels)

    def before_update(self) -> None:
        """Call when gradients are complete and parameters have not moved yet."""
        with self._watch:
            due = [m for m in self._metrics if m.moment == "before_update" and self._is_due(m, self.step + 1)]
            if due:
                state = self._state(self.step + 1, sketch=None)
                self._before = {name: value for metric in due for name, value in metric.compute(state).items()}

    def after_update(
        self, *, loss: Tensor | float | None = None, learning_rate: float | None = None, skipped: bool = False
    ) -> None:
        """Call when the parameters have moved; `skipped` where they have not, because a scaler met an overflow.

        `loss` and `learning_rate` are those of this update, if the loop has them at hand.
        """
        if not self._opened:
            raise RuntimeError("after_update() before the first begin_step(): record 0 would be missing.")
        with self._watch:
            self.step += 1
            self._take_labels(skipped=skipped)
            if learning_rate is not None:
                self._learning_rate_sum = (self._learning_rate_sum or 0.0) + (0.0 if skipped else learning_rate)
            if self._due(self.step):
                self._record(loss=loss, learning_rate=learning_rate, skipped=skipped)
        self._watch.step_done()

    def close(self) -> None:
        """End the run: what needs its last record is computed, sinks are closed. May be called twice."""
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
        snapshots = count_firings(schedule=self._snapshot_schedule, total_steps=self.total_steps, what="snapshots")
        disk = 0
        if self._store is not None:
            disk = disk_bytes(self._layout(), records=records, snapshots=snapshots)
        sketch = 0 if self._sketcher is None else 4 * len(self._groups) * self._sketcher.size
        return Plan(
            records=records,
            snapshots=snapshots,
            disk_bytes=disk,
            device_bytes=head_bytes(self._needs, vocab=self._vocab, dim=self._dim) + 3 * sketch,
            host_bytes=4 * self._vocab * self._dim + (0 if self._store else sketch * (records or 1)),
        )

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold so that a restarted run goes on as if it had never stopped."""
        return {
            "step": self.step,
            "label_counts": None if self._label_counts is None else self._label_counts.cpu(),
            "learning_rate_sum": self._learning_rate_sum,
            "references": self._references.state_dict(),
            "metrics": [metric.state_dict() for metric in self._metrics],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after `state["step"]`: the store, opened with mode="resume", is cut there.

        Raises RuntimeError after the first step.
        """
        if self._opened:
            raise RuntimeError("load_state_dict() must come before the first begin_step().")
        self.step = self._restart_step = int(state["step"])
        self._label_counts = state["label_counts"]
        self._learning_rate_sum = state["learning_rate_sum"]
        self._references.load_state_dict(dict(state["references"]), like=self.head.weight)
        for metric, own in zip(self._metrics, state.get("metrics", []), strict=False):
            metric.load_state_dict(own)

    # -- inside -----------------------------------------------------------------------------------------------

    def _open(self) -> None:
        plan = self.plan()
        logger.info("recording %s", plan)
        if self._store is not None:
            if self._mode == "resume" and self._restart_step is None:
                raise ValueError(
                    'mode="resume" needs to know where: call load_state_dict() with the checkpoint\'s recorder '
                    'state first, or pass mode="overwrite" to start anew.'
                )
            check_disk(self._store.path, needed=plan.disk_bytes, force=self._force)
        layout = self._layout()
        for sink in self._sinks:
            sink.open(layout, restart_step=self._restart_step)
        self._opened = True
        if self._restart_step is None and self._due(0):
            self._record(loss=None, learning_rate=None, skipped=False)

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
            label_counts=self._label_counts,
            learning_rate_sum=self._learning_rate_sum,
        )

    @torch.no_grad()
    def _record(self, *, loss: Tensor | float | None, learning_rate: float | None, skipped: bool) -> None:
        step = self.step
        with_snapshot = self._snapshot_schedule(step)
        sketch = None if self._sketcher is None else self._sketcher.sketch(self._groups)
        copy = None
        if with_snapshot or self._needs & {"initial_head", "previous_head"}:
            copy = point_in_time(self.head.weight)
        state = self._state(step, sketch=sketch)
        values: dict[str, Tensor | float] = {"skipped": float(skipped), **self._before}
        values["nonfinite_rows"] = (~state.output_embedding.float().sum(dim=1).isfinite()).sum()
        values |= {"loss": loss} if loss is not None else {}
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
            label_counts=None if self._label_counts is None else self._label_counts.cpu().numpy(),
        )
        for sink in self._sinks:
            sink.write(record)
        self._recorded_steps.append(step)
        if self._store is None and host_sketch is not None:
            self._sketches.append(host_sketch)
        self._references.advance(head=copy, sketch=sketch, needs=self._needs)
        self._learning_rate_sum = None if self._learning_rate_sum is None else 0.0
        self._before = {}
        self._warn_if_not_finite(host)

    def _take_labels(self, *, skipped: bool) -> None:
        if self._pending_labels is None or self._label_counts is None:
            return
        if not skipped:
            self._label_counts = self._label_counts.to(self._pending_labels.device) + self._pending_labels[1:]
        self._pending_labels.zero_()

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

    def _warn_if_not_finite(self, host: Mapping[str, np.ndarray]) -> None:
        norms = host.get("convergence.norm")
        groups = [] if norms is None else [g for g, x in zip(self._groups, norms, strict=True) if not np.isfinite(x)]
        if (host["nonfinite_rows"] > 0 or groups) and "nonfinite" not in self._warned:
            self._warned.add("nonfinite")
            where = f"{int(host['nonfinite_rows'])} rows of the output embedding"
            where += f", parameter groups {', '.join(groups)}" if groups else ""
            warnings.warn(
                f"step {self.step}: weights are not finite ({where}). They are recorded as they are; "
                "this is said once.",
                RuntimeWarning,
                stacklevel=4,
            )


def padded_texts(texts: Sequence[str], *, rows: int) -> list[str]:
    """A text for each row; padding rows have none. Raises ValueError where there are more texts than rows."""
    if len(texts) > rows:
        raise ValueError(f"token_texts has {len(texts)} entries; the output embedding has {rows} rows.")
    return [*texts, *([""] * (rows - len(texts)))]


def _checked_metrics(metrics: Sequence[Metric]) -> list[Metric]:
    names = [variable.name for metric in metrics for variable in metric.variables]
    names += [variable.name for variable in (*OWN_VARIABLES, *FINAL_VARIABLES)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"variables declared more than once: {', '.join(twice)}. Rename them or pass one metric.")
    for metric in metrics:
        if unknown := metric.needs - NEEDS:
            raise ValueError(f"{type(metric).__name__} needs {sorted(unknown)}; a recorder can keep {sorted(NEEDS)}.")
    return list(metrics)
