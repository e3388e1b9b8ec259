"""Commands on stores: is every byte as it was written, one step as a file, and what a run will take."""

from __future__ import annotations

import json as json_format
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter, validators

from trainhooks.cli.base import Flag, Positive, command
from trainhooks.shown import say, shown

if TYPE_CHECKING:
    from trainhooks.schedule import Schedule
    from trainhooks.store.planning import StorePlan


@command
def verify(store: str, *, repair: Flag = False, json: Flag = False) -> None:
    """Compare every byte of a store with what was written; exit code 0 where it is whole, 2 where it is not.

    Parameters
    ----------
    store
        Path or URL of a store.
    repair
        First drop what is torn, settle what was interrupted, roll back to the last commit and fold the journal.
    json
        Print JSON instead of text.
    """
    from trainhooks.store.repair import repair as repair_store
    from trainhooks.store.verify import verify as verify_store

    done = repair_store(store) if repair else []
    found = verify_store(store)
    if json:
        say(json_format.dumps({**found.to_dict(), "repaired": done}, indent=2))
    else:
        for line in done:
            say(shown(f"repaired: {line}"))
        for kind, findings in (("damaged", found.problems), ("note", found.notes)):
            for finding in findings:
                say(shown(f"{kind}: {finding}"))
        state = "whole" if found.sound else f"damaged in {len(found.problems)} places"
        closed = "closed" if found.complete else "not closed"
        say(
            f"{found.path} is {state}: {found.files} files, {closed}, last step {found.last_step}, "
            f"{found.journal} records in the journal"
        )
    sys.exit(0 if found.sound else 2)


@command
def snapshot(store: str, *, out: Path, kept: Flag = False, attempt: int | None = None) -> None:
    """Copy a store as of its last commit, with its journal, also while a run writes it: a sound backup.

    With --kept, the store as it was before a run went on from an older checkpoint, later records and all.

    Parameters
    ----------
    store
        Path or URL of a store.
    out
        The new folder; it appears when the copy is whole.
    kept
        Copy the records that are kept aside; `inspect` lists them.
    attempt
        With --kept: whose records. By default those that reach furthest.
    """
    from trainhooks.store import open_store
    from trainhooks.store.copying import snapshot as copy_store
    from trainhooks.store.kept import kept_place

    if attempt is not None and not kept:
        raise ValueError(f"--attempt {attempt} chooses among the records that are kept aside; give --kept with it.")
    copy_store(kept_place(store, attempt) if kept else store, out=out)
    copied = open_store(out)
    last = f"last step {copied.steps[-1]}" if len(copied.steps) else "no record yet"
    say(f"{shown(out)}: {len(copied.steps)} records, {last}, {copied.disk_bytes / 1e6:,.1f} MB")


@command
def export(store: str, *, step: int, out: Path, format: Literal["safetensors", "npy"] = "safetensors") -> None:
    """Write one step's output embedding to a file.

    Parameters
    ----------
    store
        Path or URL of a store.
    step
        A step that has a matrix.
    out
        The new file.
    format
        safetensors (the tensor is called output_embedding) or npy; float32 either way.
    """
    from trainhooks.store import open_store
    from trainhooks.store.export import export_step

    written = export_step(open_store(store), step=step, out=out, form=format)
    say(f"{shown(written)}: {written.stat().st_size / 1e6:,.1f} MB")


@command
def plan(
    *,
    vocab: Annotated[int, Positive],
    dim: Annotated[int, Positive],
    steps: Annotated[int, Positive],
    schedule: str = "every:1",
    precision: str = "float32",
    groups: Annotated[int, Parameter(validator=validators.Number(gte=1, lte=1_000_000))] = 16,
    sketch_size: Annotated[int, Parameter(validator=validators.Number(gte=0))] = 1024,
    ms_per_step: float | None = None,
    json: Flag = False,
) -> None:
    """Say what a run's store will take before it starts: disk, files, bandwidth, memory.

    Parameters
    ----------
    vocab
        Rows of the output embedding.
    dim
        Its columns.
    steps
        Optimizer updates of the run.
    schedule
        Which records have a matrix: every:N, log, or steps:0,10,100.
    precision
        float32, bfloat16, or the mantissa bits to keep, 1 to 23.
    groups
        Parameter groups that are sketched.
    sketch_size
        Numbers a sketch has for each of them.
    ms_per_step
        Milliseconds that an update takes: gives the bandwidth.
    json
        Print JSON instead of text.
    """
    from trainhooks.store import Layout
    from trainhooks.store.planning import plan_store

    layout = Layout(
        vocab=vocab,
        dim=dim,
        groups=tuple(f"group.{number}" for number in range(groups)),
        sketch_size=sketch_size,
        precision=int(precision) if precision.isdecimal() else precision,
    )
    taken = parse_schedule(schedule).count(steps)
    planned = plan_store(layout, records=taken, snapshots=taken, total_steps=steps, milliseconds=ms_per_step)
    say(json_format.dumps(planned.to_dict(), indent=2) if json else _render(planned))


def parse_schedule(text: str) -> Schedule:
    """The schedule that a word names: `every:N`, `log`, `steps:A,B`. Raises ValueError for others."""
    from trainhooks.schedule import Every, LogSpaced, Steps

    kind, _, rest = text.partition(":")
    try:
        if kind == "every":
            return Every(int(rest or 1))
        if kind == "steps":
            return Steps(int(step) for step in rest.split(","))
    except ValueError as error:
        raise ValueError(f"schedule {text!r}: {error} Use every:N, log, or steps:0,10,100.") from error
    if text == "log":
        return LogSpaced()
    raise ValueError(f"schedule {text!r} is not known; use every:N, log, or steps:0,10,100.")


def _render(planned: StorePlan) -> str:
    from trainhooks.plan import human

    estimate, rate = planned.estimated_bytes, planned.bytes_per_second
    lines = {
        "records with a matrix": str(planned.snapshots),
        "disk, at most": human(planned.disk_bytes),
        "disk, estimated": "not measured" if estimate is None else f"{human(estimate)} (ratio of consecutive steps)",
        "files": str(planned.files),
        "bandwidth": "give --ms-per-step" if rate is None else f"{human(int(rate))} a second",
        "memory, queue": human(planned.queue_bytes),
        "memory, fold": human(planned.fold_bytes),
    }
    return "\n".join(f"{name:<24}{value}" for name, value in lines.items())
