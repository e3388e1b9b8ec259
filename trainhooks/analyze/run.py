"""A checkpoint suite in, a trajectory out: the store that a live run would have written."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from trainhooks.analyze.audited import SuiteInDoubt as SuiteInDoubt  # noqa: PLC0414 - its public place
from trainhooks.analyze.audited import audited
from trainhooks.analyze.job import ALL, FAILURES, HEAD, Job, MakeMetrics, Measurement, open_entry, wanted_groups
from trainhooks.analyze.lead_sums import job_variables
from trainhooks.analyze.model_loading import check_models
from trainhooks.analyze.report import AnalysisReport
from trainhooks.analyze.store_writer import Writer, lacks_lead, made_before
from trainhooks.analyze.text import CONTEXT_LENGTH, MAX_POSITIONS, TextProbe
from trainhooks.analyze.workers import Outcomes, default_workers, here, spread
from trainhooks.checkpoints.audit.audit import Audit
from trainhooks.checkpoints.base import CheckpointError
from trainhooks.checkpoints.known_suites import preset_of
from trainhooks.checkpoints.suite import Suite, list_suite
from trainhooks.core.printable import say
from trainhooks.core.token_counts import TokenCounts
from trainhooks.core.workers import WorkerPool, cluster_pool, given_pool, local_pool
from trainhooks.corpora.presets import PYTHIA_RULE, PYTHIA_VOCAB
from trainhooks.metrics.arguments import checked_counts, checked_metrics, checked_rows, known_of_counts, padded_texts
from trainhooks.metrics.base import Metric
from trainhooks.metrics.record_info import RECORD_VARIABLES
from trainhooks.numerics.norms import all_finite
from trainhooks.numerics.sketch import DEFAULT_SIZE
from trainhooks.probe.row_selection import RowSelection

Source = Suite | str | Path | Sequence[str | Path]
Progress = Callable[[int, int], None]
Tell = Callable[[str], object]


def tell_stderr(message: str) -> None:
    """Print a message to the standard error stream."""
    say(message, error=True)


def analyze_suite(
    suite: Source,
    *,
    counts: TokenCounts | np.ndarray | RowSelection | None,
    out: str | Path,
    steps: str | Sequence[int] | None = None,
    params: str = HEAD,
    metrics: Sequence[Metric] | MakeMetrics | None = None,
    snapshots: bool = False,
    workers: int | None = None,
    threads: int = 1,
    scheduler: str | None = None,
    executor: Executor | None = None,
    strict: bool = False,
    audit: bool = True,
    keep_going: bool = False,
    vocab_size: int | None = None,
    min_count: int = 1,
    exclude: Sequence[int] = (),
    token_texts: Sequence[str] | None = None,
    revision_pattern: str | None = None,
    by: str | None = None,
    stage: str | Sequence[str] | None = None,
    seed: str | int | None = None,
    manifest: str | Path | None = None,
    head: str | None = None,
    transposed: bool = False,
    text: str | Path | None = None,
    tokenizer: str | Path | None = None,
    positions: int = MAX_POSITIONS,
    context_length: int = CONTEXT_LENGTH,
    tell: Tell = tell_stderr,
    preset: str | None = None,
    precision: str | int = "float32",
    sketch_size: int = DEFAULT_SIZE,
    mode: str = "create",
    progress: Progress | None = None,
) -> AnalysisReport:
    """Measure every checkpoint of a suite and write the store that a live run with these records would have written.

    Beside the metrics of a live run it holds the way to the *final* state exactly: of the output embedding, whole and
    by frequency bin, and of every parameter group that is read. Only the wanted tensors are read, one after another.

    - `suite`: a `Suite`, or what `list_suite` takes, with `steps`, `revision_pattern`, `by`, `stage`, `seed`
      and `manifest`.
    - `counts` (or a `RowSelection`), `vocab_size`, `min_count`, `exclude`, `token_texts`: as for `Recorder`; without
      counts no probe.
    - `head` is the output embedding's key, where it cannot be found; `transposed`: it is stored as [dim, vocab].
    - `params`: "head" (with the last norm), "all" parameters, or a glob on their names that adds a group.
    - `metrics`: None for the default ones; a function that makes them, or instances where all runs in this process.
    - `snapshots` keeps the matrices too, in `precision`; a verdict on the store needs counts, and no matrices.
    - `workers` local processes (None: up to 4; 1: this process), each with `threads` of torch; or those of a Dask
      cluster at `scheduler`, or an `executor`. Numbers are the same to the bit whatever the workers, for one
      `threads` and one kind of machine.
    - `text`: a UTF-8 file that every model reads, for `text.*`, `probability.*` and `channel.*` (see `TextProbe`): up
      to `positions` positions in windows of `context_length` tokens of `tokenizer`, by default the final checkpoint's.
      Each model is loaded; what that costs goes to `tell` before.
    - `audit`: look for broken checkpoints first, by their output embeddings, and leave them out. What puts in doubt
      that the rest is one run in this order (unrelated states, jumps, the same content at far steps) stops the
      analysis, unless `keep_going`; what was found is in the store's attributes (`audit`) and in every verdict on it.
    - `strict`: stop at the first checkpoint that fails, or that the audit cannot read; else it is reported and passed
      over.
    - `mode`: "create", "overwrite", or "resume": go on after the last step in the store, which is made where there is
      none. `preset`: a known suite (`trainhooks suites`): its steps, stages and seed, and its tokenizer's ids, the rows
      beyond being padding.
    - `progress` is called with the checkpoints done and all of them.

    Raises ValueError for arguments that make no sense, a suite without a checkpoint that can be read, a store made with
    other settings, and with `strict` for a checkpoint that fails; what was measured until then is in the store.
    """
    began = time.monotonic()
    naming = {"revision_pattern": revision_pattern, "by": by, "stage": stage, "seed": seed, "manifest": manifest}
    suite = _listed(suite, steps=steps, preset=preset, naming=naming)
    suite = suite.with_transposed(head) if transposed else suite
    if preset is not None and vocab_size is None and not isinstance(counts, RowSelection):
        vocab_size = preset_of(preset).ids_used
    if text is not None:
        _check_text(suite, text, counts=counts)
    make = _makers(metrics, in_one_process=executor is None and scheduler is None and workers == 1)
    checked = audited(suite, head=head, audit=audit, keep_going=keep_going, strict=strict)
    given = checked_counts(counts)
    token_counts = known_of_counts(given)
    job, failed = _job(suite, checked.broken, params=params, head=head)
    chosen: dict[str, Any] = {"vocab_size": vocab_size, "min_count": min_count, "exclude": exclude}
    rows, settings = checked_rows(given, vocab=job.shape[0], **chosen, metrics_given=make is not None)
    job = replace(
        job,
        rows=rows,
        row_settings={**job.row_settings, **settings},
        token_texts=None if token_texts is None else tuple(padded_texts(token_texts, rows=job.shape[0])),
        make_metrics=make,
        sketch_size=sketch_size,
        threads=threads,
    )
    if text is not None:
        limits = {"max_positions": positions, "context_length": context_length}
        job = replace(job, text=_reading(job, text, tokenizer, limits=limits))
    _check_metrics(job)
    if strict and failed:
        raise CheckpointError(_told(failed))
    kept = {"matrices": str(precision) if snapshots else None}
    before = made_before(out, job, kept=kept) if mode == "resume" else ()
    job = replace(job, keeps_lead=not (mode == "resume" and lacks_lead(out)))
    about = settings | kept | checked.attributes
    writer = Writer(out, job, counts=token_counts, given=about, snapshots=snapshots, precision=precision, mode=mode)
    indices = [i for i, entry in enumerate(job.entries) if not before or entry.step > before[-1]]
    if job.text is not None and indices:
        tell(job.text.announce(replace(suite, entries=tuple(job.entries[i] for i in indices))))
    with _outcomes(job, indices, workers=workers, scheduler=scheduler, executor=executor) as outcomes:
        done, late = _write(writer, outcomes, total=len(indices), strict=strict, progress=progress)
    skipped = [e.step for e in job.entries if before and e.step < before[-1] and e.step not in before]
    return AnalysisReport(
        suite=suite.name,
        out=str(out),
        final_step=job.final.step,
        steps=tuple(done),
        resumed=before,
        left_out=checked.broken,
        failed=dict(sorted((failed | late).items())),
        notes=tuple(_notes(job, token_counts, preset=preset, found=checked.found, skipped=skipped)),
        seconds=time.monotonic() - began,
        audit=checked.found,
    )


def _listed(
    suite: Source, *, steps: str | Sequence[int] | None, preset: str | None, naming: Mapping[str, Any]
) -> Suite:
    grid = None if preset is None else preset_of(preset).grid
    wanted = steps if steps is not None else grid or None
    if not isinstance(suite, Suite):
        return list_suite(suite, steps=wanted, preset=preset, **naming)
    if wanted is not None or any(value is not None for value in naming.values()):
        raise ValueError("a Suite has its steps already: pass steps and how names are read to list_suite instead.")
    return suite


@dataclass(frozen=True)
class _Instances:
    """Metrics that were given as such: they serve one walk, in this process."""

    metrics: tuple[Metric, ...]

    def __call__(self) -> tuple[Metric, ...]:
        return self.metrics


def _makers(metrics: Sequence[Metric] | MakeMetrics | None, *, in_one_process: bool) -> MakeMetrics | None:
    if metrics is None or callable(metrics):
        return metrics
    if not in_one_process:
        raise ValueError(
            "metrics that are instances remember what they have seen and cannot be shared by workers: pass a function "
            "(at the top of a module) that makes them, or workers=1."
        )
    return _Instances(tuple(metrics))


def _check_metrics(job: Job) -> None:
    metrics = checked_metrics(job.metrics(), own=(*RECORD_VARIABLES, *job.own_variables, *job_variables(job)))
    for metric in metrics:
        name = type(metric).__name__
        if "hidden" in metric.needs or metric.moment == "before_update":
            raise ValueError(f"{name} needs a model that runs or gradients: no checkpoint has them. Leave it out.")
        if "sketch" in metric.needs and len(metric.needs) > 1:
            raise ValueError(f"{name} needs sketches and output embeddings at once: make two metrics of it.")


def _job(suite: Suite, broken: Mapping[int, str], *, params: str, head: str | None) -> tuple[Job, dict[int, str]]:
    """The job, once the final state has been read, and the checkpoints at the end that could not be."""
    sound = [entry for entry in suite.entries if entry.step not in broken]
    failed: dict[int, str] = {}
    while sound:
        entry = sound[-1]
        try:
            opened = open_entry(suite, entry, head=head, whole=params != HEAD)
            groups = wanted_groups(opened, params=params)
            if params not in (HEAD, ALL) and params not in groups:
                raise CheckpointError(f"{opened.checkpoint.name} does not hold all that {params!r} names.")
            matrix = opened.read_head()
            shape = (int(matrix.shape[0]), int(matrix.shape[1]))
            fingerprint = opened.checkpoint.identity(opened.head.key)
            names: Any = {"params": params, "head": head, "fingerprint": fingerprint, "taken": opened.head.told}
            return Job(suite, tuple(sound), final=entry, shape=shape, groups=groups, **names), failed
        except FAILURES as error:
            failed[entry.step] = str(error)
            sound.pop()
    told = [*broken.values(), *(f"step {step}: {reason}" for step, reason in failed.items())]
    raise ValueError(f"{suite.name} has no checkpoint that can be analyzed. {'; '.join(told[:3]) or 'It is empty.'}")


def _is_finite(job: Job) -> bool:
    head = open_entry(job.suite, job.final, head=job.head, shape=job.shape).read_head()
    return all_finite(head)


def _check_text(suite: Suite, text: str | Path, *, counts: object) -> None:
    if counts is None:
        raise ValueError("a text is held against token counts: pass counts of its tokenizer.")
    if not Path(text).is_file():
        raise FileNotFoundError(f"the text {text} is no file that is here.")
    check_models(suite)


def _reading(job: Job, text: str | Path, tokenizer: str | Path | None, *, limits: Mapping[str, Any]) -> TextProbe:
    """The text, tokenized, for the job's rows."""
    assert job.rows is not None
    probe = TextProbe(text, tokenizer, counts=job.rows, **limits)
    return probe.prepared(job.final.location)


@contextmanager
def _outcomes(
    job: Job, indices: Sequence[int], *, workers: int | None, scheduler: str | None, executor: Executor | None
) -> Iterator[Outcomes]:
    if scheduler is not None and executor is not None:
        raise ValueError("scheduler and executor both say where to measure: pass one of them.")
    workers = default_workers(len(indices)) if workers is None else workers
    opening: AbstractContextManager[WorkerPool | None] = nullcontext(None)
    if scheduler is not None and indices:
        opening = cluster_pool(scheduler)
    elif executor is not None and indices:
        count = max(workers, 1)
        opening = nullcontext(given_pool(executor, count=count, under_way=2 * count))
    elif workers > 1 and indices:
        opening = local_pool(workers)
    with opening as pool:
        outcomes: Any = here(job, indices) if pool is None else spread(job, indices, pool)
        with closing(outcomes):
            yield outcomes


def _write(
    writer: Writer, outcomes: Outcomes, *, total: int, strict: bool, progress: Progress | None
) -> tuple[list[int], dict[int, str]]:
    """Write what comes, in order; the steps written, and those that failed. A finished store is not opened again."""
    done: list[int] = []
    failed: dict[int, str] = {}
    if not total and writer.finished:
        return done, failed
    with writer:
        for outcome in outcomes:
            problem = writer.write(outcome) if isinstance(outcome, Measurement) else outcome
            if problem is None:
                done.append(outcome.step)
            else:
                failed[problem.step] = problem.reason
                if strict:
                    raise CheckpointError(_told(failed))
            if progress is not None:
                progress(len(done) + len(failed), total)
        writer.finish()
    return done, failed


def _told(failed: Mapping[int, str]) -> str:
    step, reason = next(iter(failed.items()))
    return f"step {step}: {reason}. What was measured before it is in the store; go on with mode='resume'."


def _notes(
    job: Job, counts: TokenCounts | None, *, preset: str | None, found: Audit | None, skipped: Sequence[int]
) -> Iterator[str]:
    yield f"output embedding: {job.taken}."
    yield from job.suite.told
    if preset is not None and preset_of(preset).grid == "pythia":
        yield (
            f"counts: Pythia's published ones hold {PYTHIA_RULE} (0.05% more than the labels); rows from "
            f"{PYTHIA_VOCAB} on are padding, left out of every fit and kept as a control (probe.never_label_*)."
        )
    elif counts is not None and counts.rule:
        yield f"counts: {counts.rule}."
    suite = job.suite
    if suite.wanted is not None and (missing := sorted(set(suite.wanted) - set(suite.steps))):
        yield f"{len(missing)} steps that were asked for are not there: {', '.join(map(str, missing[:8]))}."
    if found is None:
        yield "no audit: duplicated or broken checkpoints are not left out."
        if not _is_finite(job):
            yield f"the final state, step {job.final.step}, is not finite: every figure that refers to it is NaN."
    if skipped:
        yield (
            f"steps {', '.join(map(str, skipped[:8]))} lie before the store's last one and cannot be filled in: begin "
            "anew with mode='overwrite' to have them."
        )
