"""The command that measures a checkpoint suite."""

from __future__ import annotations

import json as json_format
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from trainhooks.cli.base import FOUND, Flag, Positive, command
from trainhooks.core.printable import plain_console, say, sayer

if TYPE_CHECKING:
    from rich.progress import Progress


@command
def analyze(
    suite: str,
    *others: str,
    counts: Path,
    out: Path,
    steps: str | None = None,
    params: str = "head",
    workers: Annotated[int | None, Positive] = None,
    threads: Annotated[int, Positive] = 1,
    scheduler: str | None = None,
    snapshots: Flag = False,
    strict: Flag = False,
    no_audit: Flag = False,
    keep_going: Flag = False,
    overwrite: Flag = False,
    vocab_size: Annotated[int | None, Positive] = None,
    min_count: Annotated[int, Positive] = 1,
    revision_pattern: str | None = None,
    by: Literal["step", "tokens"] | None = None,
    stage: str | None = None,
    seed: str | None = None,
    manifest: Path | None = None,
    head: str | None = None,
    transposed: Flag = False,
    text: Path | None = None,
    tokenizer: Path | None = None,
    positions: Annotated[int | None, Positive] = None,
    context_length: Annotated[int | None, Positive] = None,
    preset: str | None = None,
    dry_run: Flag = False,
    json: Path | None = None,
) -> None:
    """Measure a checkpoint suite and write its trajectory to a store; run again, it goes on where it stopped.

    Several suites are one job: with --scheduler the cluster's workers have checkpoints of all of them. Exit code 2
    where a checkpoint, or one of several suites, failed and was passed over.

    Parameters
    ----------
    suite
        A folder of checkpoints, a store, a hub repository (owner/name, hf://...), or a text file of places.
    others
        More suites, with the same options.
    counts
        Token counts (.npz, .npy or .csv) of the corpus.
    out
        Path of the store to write; of several suites the folder for their stores, NAME.zarr each.
    steps
        Which ones: 0,1,2,4 or 0:143000:1000 (last included), log, pythia, or several with commas.
    params
        head for the output embedding, all, or a glob over parameter names.
    workers
        Local processes; 1 stays in this one. By default up to 4.
    threads
        Of each worker; numbers are the same to the bit for the same threads.
    scheduler
        Address of a Dask scheduler, whose workers measure.
    snapshots
        Keep the output embeddings too.
    strict
        Stop at the first checkpoint that fails, or that the audit cannot read.
    keep_going
        Go on where the audit doubts that the checkpoints are one run in this order; the store and every verdict say so.
    no_audit
        Do not look for broken checkpoints first.
    overwrite
        Replace the store that is there.
    vocab_size
        The tokenizer's ids, where the output embedding has padding rows.
    min_count
        Leave out tokens counted less often.
    revision_pattern
        A regular expression for the names of checkpoints or revisions, with one group: the step.
    by
        What orders the checkpoints: step, or the tokens that their names tell.
    stage
        One stage of a training of several (base: names without one), or several with commas, in their order.
    seed
        One run of several seeds; all for each of them.
    manifest
        A CSV or YAML table of the suite's checkpoints: place, step or tokens, stage, seed. It may be the suite itself.
    head
        The output embedding's key, where it cannot be found.
    transposed
        That key is stored as [dim, vocab]; known names (unembed.W_U, kernel) need no telling.
    text
        A UTF-8 text that every model reads: its loss, its average output probability and the probe on that. This
        loads models; what it costs is said before.
    tokenizer
        A tokenizer.json or a folder with one; by default the final checkpoint's.
    positions
        Of the text, up to 8192 by default.
    context_length
        Tokens that a model reads at once, 128 by default.
    preset
        A known suite (trainhooks suites): its steps, stages, seed and ids. pythia: its 154 steps and 50277 ids.
    dry_run
        Only say what it would take at a hub: requests, bytes, hours. Nothing but listings is asked for.
    json
        Write the report to this file too.

    Examples
    --------
    trainhooks analyze checkpoints/ --counts counts.npz --out suite.zarr
    trainhooks analyze EleutherAI/pythia-14m --preset pythia --counts pile.npz --out pythia.zarr --workers 4
    trainhooks analyze checkpoints/ --counts counts.npz --out suite.zarr --text held_out.txt --json report.json
    trainhooks analyze runs/a runs/b --counts counts.npz --out stores/ --scheduler tcp://10.0.0.1:8786
    """
    from trainhooks.analyze.text import CONTEXT_LENGTH, MAX_POSITIONS
    from trainhooks.core.token_counts import TokenCounts

    if json is not None and not json.parent.is_dir():
        raise FileNotFoundError(f"{json.parent} is no folder; the report cannot be written there.")
    naming = {"revision_pattern": revision_pattern, "by": by, "stage": stage, "manifest": manifest, "preset": preset}
    if dry_run:
        _say_what_it_takes([suite, *others], json, seed=seed, steps=steps, vocab_size=vocab_size, naming=naming)
        return
    settings: dict[str, Any] = {
        "counts": TokenCounts.load(counts),
        "steps": steps,
        "params": params,
        "workers": workers,
        "threads": threads,
        "scheduler": scheduler,
        "snapshots": snapshots,
        "strict": strict,
        "audit": not no_audit,
        "keep_going": keep_going,
        "vocab_size": vocab_size,
        "min_count": min_count,
        "revision_pattern": revision_pattern,
        "by": by,
        "stage": stage,
        "manifest": manifest,
        "head": head,
        "transposed": transposed,
        "text": text,
        "tokenizer": tokenizer,
        "positions": MAX_POSITIONS if positions is None else positions,
        "context_length": CONTEXT_LENGTH if context_length is None else context_length,
        "preset": preset,
        "mode": "overwrite" if overwrite else "resume",
    }
    runs = _all_runs([suite, *others], seed, out, json, naming)
    failed = _as_one_job(runs, settings) if len(runs) > 1 else _alone(runs[0], settings)
    if failed:
        sys.exit(FOUND)


class _Run(NamedTuple):
    """One suite, the seed taken of it, its store and its report."""

    suite: str
    seed: str | None
    out: Path
    report: Path | None


def _alone(run: _Run, settings: dict[str, Any]) -> bool:
    """Analyse one; whether a checkpoint failed."""
    from rich.progress import Progress

    from trainhooks.analyze import analyze_suite

    with Progress(console=plain_console(stderr=True)) as bar:
        report = analyze_suite(run.suite, seed=run.seed, out=run.out, **settings, **_heard(bar))
    _keep(report, run.report)
    say(report.render(), end="")
    return bool(report.failed)


def _as_one_job(runs: list[_Run], settings: dict[str, Any]) -> bool:
    """Analyse several; whether one of them, or a checkpoint of one, failed."""
    from rich.progress import Progress

    from trainhooks.analyze.several import analyze_suites

    wanted = {run.out: {"suite": run.suite, "seed": run.seed} for run in runs}
    with Progress(console=plain_console(stderr=True)) as bar:
        found = analyze_suites(wanted, **settings, **_heard(bar))
    for run in runs:
        if run.out in found.reports:
            _keep(found.reports[run.out], run.report)
    say(found.render(), end="")
    return bool(found.failed) or any(report.failed for report in found.reports.values())


def _keep(report: Any, path: Path | None) -> None:
    if path is not None:
        path.write_text(json_format.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")


def _all_runs(
    suites: list[str], seed: str | None, out: Path, report: Path | None, naming: dict[str, Any]
) -> list[_Run]:
    """Each run that is analysed; those of several suites in the folder `out`. Makes that folder."""
    from trainhooks.checkpoints.store_suite import is_store

    if len(suites) == 1:
        return [_Run(suites[0], *run) for run in _runs(suites[0], seed, out, report, naming)]
    if out.suffix == ".zarr" or is_store(str(out)) or (out.exists() and not out.is_dir()):
        raise ValueError(f"{out} would be one store for {len(suites)} suites: with several give a folder (--out DIR).")
    labels = [_label(suite) for suite in suites]
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise ValueError(
            f"two of the suites would be {out / twice}.zarr: analyse them one by one, each with its --out."
        )
    out.mkdir(parents=True, exist_ok=True)
    runs = []
    for suite, label in zip(suites, labels, strict=True):
        told = None if report is None else report.with_name(f"{report.stem}-{label}{report.suffix}")
        runs += [_Run(suite, *run) for run in _runs(suite, seed, out / f"{label}.zarr", told, naming)]
    if len({run.out for run in runs}) < len(runs):
        raise ValueError("a seed of one suite and another suite would share a store: analyse them one by one.")
    return runs


def _label(suite: str) -> str:
    """What a suite's store is called: the last part of a path, else all of its name."""
    local = Path(suite)
    text = local.absolute().name if local.exists() else re.sub(r"^[a-z0-9+.-]+://", "", suite)
    return re.sub(r"[^\w.-]+", "-", text).strip("-.").removesuffix(".zarr") or "suite"


def _runs(
    suite: str, seed: str | None, out: Path, report: Path | None, naming: dict[str, Any]
) -> list[tuple[str | None, Path, Path | None]]:
    """The seed of each run that is analysed, with its store and its report: one, or with `all` one a seed."""
    from trainhooks.checkpoints.series import ALL
    from trainhooks.checkpoints.suite import list_runs

    if seed != ALL:
        return [(seed, out, report)]
    seeds = [run.entries[0].seed for run in list_runs(suite, seed=ALL, **naming)]
    if seeds == [""]:
        return [(None, out, report)]

    def named(path: Path, one: str) -> Path:
        told = re.sub(r"[^\w-]+", "-", one)  # a manifest may have any text for a seed
        return path.with_name(f"{path.stem}-seed-{told}{path.suffix}")

    if len({named(out, one) for one in seeds}) < len(seeds):
        raise ValueError(f"the seeds {', '.join(map(repr, seeds))} would share a store's name: analyse each by --seed.")
    return [(one, named(out, one), None if report is None else named(report, one)) for one in seeds]


def _say_what_it_takes(
    suites: list[str],
    report: Path | None,
    *,
    seed: str | None,
    steps: str | None,
    vocab_size: int | None,
    naming: dict[str, Any],
) -> None:
    """The estimate of each run."""
    from trainhooks.analyze.dry_run import dry_run
    from trainhooks.checkpoints.known_suites import preset_of
    from trainhooks.checkpoints.suite import list_runs

    preset = naming["preset"]
    steps = steps or (None if preset is None else preset_of(preset).grid or None)  # as the analysis takes them
    runs = [run for suite in suites for run in list_runs(suite, seed=seed, steps=steps, **naming)]
    found = [dry_run(run, vocab_size=vocab_size) for run in runs]
    say("".join(one.render() for one in found), end="")
    if report is not None:
        told = [one.to_dict() for one in found]
        report.write_text(json_format.dumps(told[0] if len(told) == 1 else told, indent=2) + "\n", encoding="utf-8")


def _heard(bar: Progress) -> dict[str, Any]:
    """What an analysis tells, and how far it is, on a bar."""
    task = bar.add_task("checkpoints", total=None)
    return {
        "tell": sayer(bar.console),
        "progress": lambda done, total: bar.update(task, completed=done, total=total),
    }
