"""Writing an analysis into a store: one process, in order of steps; and going on with one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from trainhooks.analyze.job import FAILURES, Failed, Job, Measurement, open_entry
from trainhooks.analyze.lead_sums import job_variables
from trainhooks.analyze.positions import position_attributes, position_values
from trainhooks.checkpoints.store_suite import is_store
from trainhooks.core.token_counts import TokenCounts
from trainhooks.metrics.base import State
from trainhooks.metrics.group_convergence import FINAL_VARIABLES, GroupConvergence, convergence_to_final, kept_norms
from trainhooks.metrics.record_info import RECORD_VARIABLES
from trainhooks.model import OutputEmbedding
from trainhooks.model.provenance import provenance_of
from trainhooks.numerics.host import to_host
from trainhooks.sinks import Record, StoreSink
from trainhooks.store import Layout, StoreError, open_store

MODES = ("create", "overwrite", "resume")
UNTRAINED = {
    "probability.untrained_r2": "probability.heldout_r2",
    "probability.untrained_variance": "probability.variance",
}


def made_before(out: str | Path, job: Job, *, kept: Mapping[str, object]) -> tuple[int, ...]:
    """The steps that the store at `out` holds already; none where there is no store.

    Raises ValueError where it was made of another suite, with other settings, or to keep something else (`kept`).
    """
    path = Path(out).expanduser()
    if not is_store(str(path)):
        return ()
    store = open_store(path)
    steps = tuple(int(step) for step in store.steps)
    known = {entry.step for entry in job.entries}
    found = [
        f"{name}: the store has {store.attributes.get(name)!r}, this analysis {value!r}"
        for name, value in {**job.settings, **kept}.items()
        if store.attributes.get(name) != value
    ]
    if foreign := [step for step in steps if step not in known]:
        found.append(f"steps in the store, not in this analysis: {foreign[:8]}")
    if found:
        raise StoreError(
            f"{path} was made by another analysis; go on with the same one, choose another path, or replace it "
            "(mode='overwrite', --overwrite):\n- " + "\n- ".join(found)
        )
    return steps


def lacks_lead(out: str | Path) -> bool:
    """Whether there is a store at `out` that was begun without what a verdict needs, as older versions did."""
    path = Path(out).expanduser()
    return is_store(str(path)) and "lead.inner" not in open_store(path).names


class Writer:
    """Appends measured checkpoints to a store, as a context that opens and closes it.

    What compares sketches of successive records is computed here, since here they come in order. `finished` says that
    nothing but more records is left to write. Raises StoreError where the store cannot be made.
    """

    def __init__(
        self,
        out: str | Path,
        job: Job,
        *,
        counts: TokenCounts | None,
        given: Mapping[str, object],
        snapshots: bool,
        precision: str | int,
        mode: str,
    ) -> None:
        path = Path(out).expanduser()
        if mode not in MODES:
            raise ValueError(f"mode {mode!r} is not known; use one of {', '.join(MODES)}.")
        self._goes_on = mode == "resume" and is_store(str(path))
        self._job, self._snapshots = job, snapshots
        self._layout = _layout(job, counts=counts, given=given, snapshots=snapshots, precision=precision)
        self._sink = StoreSink(path, mode="create" if mode == "resume" and not self._goes_on else mode)
        self._sink.check()
        self._metrics = [metric for metric in job.metrics() if "sketch" in metric.needs]
        self._initial_sketch: Tensor | None = None
        self._previous_sketch: Tensor | None = None
        self._untrained: dict[str, np.ndarray] = {}

    @property
    def finished(self) -> bool:
        """Whether the store was closed after its last record."""
        return self._goes_on and open_store(self._sink.path).complete

    def __enter__(self) -> Writer:
        self._sink.open(self._layout)
        if self._goes_on and len((store := self._sink.read()).steps):
            for sketch in (store.sketch[0], store.sketch[-1]):
                self._remember(torch.from_numpy(np.array(sketch)))
            for metric in self._metrics:
                if isinstance(metric, GroupConvergence) and (norms := kept_norms(store)) is not None:
                    metric.load_state_dict({"initial_norms": torch.from_numpy(norms[0])})
            if self._job.text is not None:
                first = {name: np.asarray(store[name][0]) for name in UNTRAINED.values()}
                self._untrained = _untrained(int(store.steps[0]), first)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        if kind is None:
            self._sink.close()
        else:
            self._sink.leave()

    def write(self, measured: Measurement) -> Failed | None:
        """Queue one record; Failed where its snapshot cannot be read again."""
        try:
            snapshot = self._head(measured).numpy() if self._snapshots else None
        except FAILURES as error:
            return Failed(measured.step, str(error))
        sketch = torch.from_numpy(measured.sketch)
        values = {**measured.values, **self._of_groups(measured, sketch), **self._of_text(measured)}
        entry = next(entry for entry in self._job.entries if entry.step == measured.step)
        values |= position_values(self._job.suite, entry)
        record = Record(
            step=measured.step,
            values=values,
            groups=tuple(self._job.groups),
            sketch=measured.sketch,
            snapshot=snapshot,
        )
        self._sink.write(record)
        self._remember(sketch)
        return None

    def _head(self, measured: Measurement) -> Tensor:
        """The matrix that was measured; read again where a worker has measured it."""
        if measured.head is not None:
            return measured.head
        entry = next(entry for entry in self._job.entries if entry.step == measured.step)
        return open_entry(self._job.suite, entry, head=self._job.head, shape=self._job.shape).read_head()

    def finish(self) -> None:
        """What needs all records: convergence from the sketches, as at the end of a live run."""
        store = self._sink.read()
        if len(store.steps):
            norms = kept_norms(store)
            final = convergence_to_final(
                torch.from_numpy(store.mapped_sketch()),
                torch.from_numpy(store.steps),
                norms=None if norms is None else torch.from_numpy(norms),
            )
            self._sink.finish({name: value.numpy() for name, value in final.items()})

    def _remember(self, sketch: Tensor) -> None:
        self._initial_sketch = sketch if self._initial_sketch is None else self._initial_sketch
        self._previous_sketch = sketch

    def _of_text(self, measured: Measurement) -> dict[str, np.ndarray]:
        """The step that the text's figures describe, and those of the first record, repeated."""
        if self._job.text is None:
            return {}
        if not self._untrained:
            self._untrained = _untrained(measured.step, measured.values)
        return {"probability.step": np.asarray(float(measured.step)), **self._untrained}

    def _of_groups(self, measured: Measurement, sketch: Tensor) -> dict[str, np.ndarray]:
        norms = torch.from_numpy(measured.norms)
        nothing = torch.empty(self._job.shape, device="meta")
        state = State(
            step=measured.step,
            model=nn.Module(),
            head=OutputEmbedding(weight=nothing, name="", module=nn.Module()),
            # a single element has the norm of the group it stands for
            groups={group: [norm.reshape(1)] for group, norm in zip(self._job.groups, norms, strict=True)},
            sketch=sketch,
            initial_sketch=self._initial_sketch,
            previous_sketch=self._previous_sketch,
        )
        values: dict[str, Tensor | float] = {}
        for metric in self._metrics:
            values |= metric.compute(state)
        return to_host(values)


def _untrained(step: int, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The first record's figures on the text, under the names that repeat them."""
    found = {name: np.asarray(values.get(source, np.nan)) for name, source in UNTRAINED.items()}
    return {**found, "probability.untrained_step": np.asarray(float(step))}


def _layout(
    job: Job, *, counts: TokenCounts | None, given: Mapping[str, object], snapshots: bool, precision: str | int
) -> Layout:
    opened = open_entry(job.suite, job.final, head=job.head, shape=job.shape)
    about = {"suite": job.suite.name, "threads": job.threads, **position_attributes(job.suite), **job.settings, **given}
    provenance = provenance_of(opened.standin.model, counts, given=about)
    if not opened.standin.is_whole:  # counting them would take every shard's header
        provenance["parameters"] = None
    head = opened.standin.head
    metrics = (variable for metric in job.metrics() for variable in metric.variables)
    return Layout(
        vocab=job.shape[0],
        dim=job.shape[1],
        groups=tuple(job.groups),
        sketch_size=job.sketch_size if job.groups else 0,
        variables=(*RECORD_VARIABLES, *metrics, *job.own_variables, *job_variables(job), *FINAL_VARIABLES),
        precision=precision,
        attributes={**provenance, "output_embedding": head.name, "tied": head.tied},
        token_count=job.counts,
        token_text=job.token_texts,
        snapshots=snapshots,
    )
