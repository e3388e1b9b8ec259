"""The command that says what a run will take on disk."""

from __future__ import annotations

import json as json_format
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter, validators

from trainhooks.cli.base import Flag, Positive, command
from trainhooks.core.printable import say

if TYPE_CHECKING:
    from trainhooks.core.schedule import Schedule
    from trainhooks.store.maintenance.planning import StorePlan


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

    Examples
    --------
    trainhooks plan --vocab 50304 --dim 768 --steps 10000
    trainhooks plan --vocab 50304 --dim 768 --steps 10000 --schedule log --precision bfloat16 --json
    """
    from trainhooks.core.schedule import Thinned
    from trainhooks.store import Layout
    from trainhooks.store.maintenance.planning import plan_store

    layout = Layout(
        vocab=vocab,
        dim=dim,
        groups=tuple(f"group.{number}" for number in range(groups)),
        sketch_size=sketch_size,
        precision=int(precision) if precision.isdecimal() else precision,
    )
    fires = parse_schedule(schedule)
    taken, costly = fires.count(steps), Thinned().within(fires, last=steps).count(steps)
    planned = plan_store(layout, records=taken, snapshots=taken, total_steps=steps, milliseconds=ms_per_step)
    found = {**planned.to_dict(), "costly_records": costly}
    say(json_format.dumps(found, indent=2) if json else _render(planned, costly=costly))


def parse_schedule(text: str) -> Schedule:
    """The schedule that a word names: `every:N`, `log`, `steps:A,B`. Raises ValueError for others."""
    from trainhooks.core.schedule import Every, LogSpaced, Steps

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


def _render(planned: StorePlan, *, costly: int) -> str:
    from trainhooks.core.formatting import human

    estimate, rate = planned.estimated_bytes, planned.bytes_per_second
    lines = {
        "records with a matrix": str(planned.snapshots),
        "with spectrum and CKA": f"{costly} (th.default_metrics(counts, costly=None): all)",
        "disk, at most": human(planned.disk_bytes),
        "disk, estimated": "not measured"
        if estimate is None
        else f"{human(estimate)} (as heads in training were compressed)",
        "files": str(planned.files),
        "bandwidth": "give --ms-per-step" if rate is None else f"{human(int(rate))} a second",
        "memory, queue": human(planned.queue_bytes),
        "memory, fold": human(planned.fold_bytes),
    }
    return "\n".join(f"{name:<24}{value}" for name, value in lines.items())
