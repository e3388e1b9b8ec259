"""TensorBoard's event files that are ours: found by their names, taken over by a run that goes on, set aside."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

EVENTS, FINAL, ABOUT = ".trainhooks", ".trainhooks-final", ".trainhooks-about"
"""How the names of our files end: what comes with each record; when the last one is known; what is said of the run."""


def own_files(folder: Path, *, suffixes: tuple[str, ...]) -> list[Path]:
    """Our event files in a folder, in the order in which they were written."""
    return sorted(path for path in folder.glob("events.out.tfevents.*") if path.name.endswith(suffixes))


def set_aside(files: Sequence[Path]) -> None:
    """Move an earlier run's files into a subfolder of theirs that is new: it is a run of its own in TensorBoard."""
    if not files:
        return
    number = 1
    while (folder := files[0].parent / f"earlier-{number}").exists():
        number += 1
    folder.mkdir()
    for path in files:
        path.rename(folder / path.name)


def take_over(
    files: Sequence[Path], *, into: Any, upto: int, wanted: Iterable[str] = ()
) -> dict[int, dict[str, float]]:
    """Write the events up to and including step `upto` into a `FileWriter`.

    Returns by step, each once and rising, the numbers of the tags `wanted`. Steps rise in what is written, whatever
    restarts the files hold.
    """
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    events = [event for path in files for event in LegacyEventFileLoader(str(path)).Load()]
    kept = sorted((event for event in events if event.summary.value and event.step <= upto), key=lambda e: e.step)
    found: dict[int, dict[str, float]] = {}
    tags = frozenset(wanted)
    for event in kept:
        into.add_event(event, event.step, event.wall_time)
        numbers = {value.tag: value.simple_value for value in event.summary.value if value.tag in tags}
        found.setdefault(event.step, {}).update(numbers)
    return found


def write_about(
    folder: Path,
    *,
    layout: Mapping[str, Any],
    texts: Mapping[str, str],
    hparams: Mapping[str, bool | int | float | str] | None = None,
    figures: Mapping[str, float] | None = None,
) -> None:
    """Write what is said of a run as a file that stands before all others of its folder.

    Charts, texts (Markdown), and for the dashboard HParams settings and `figures`: tags, of which those under
    "verdict/" are written here too.

    TensorBoard reads a folder's files in the order of their names and, without its fast loader, never goes back to
    one: so this one is whole from the start, and its name is the first.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter
    from torch.utils.tensorboard import summary as made

    now, figures = time.time(), figures or {}
    summaries = [made.custom_scalars(layout)] if layout else []
    summaries += [made.text(tag, said) for tag, said in texts.items()]
    if hparams is not None:
        summaries += made.hparams(dict(hparams), dict(figures))
    summaries += [made.scalar(tag, number) for tag, number in figures.items() if tag.startswith("verdict/")]
    path = folder / f"events.out.tfevents.0000000000{ABOUT}"
    partial = folder / f".{path.name}.partial"
    with partial.open("wb") as file:
        writer = RecordWriter(file)
        writer.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
        for summary in summaries:
            writer.write(Event(wall_time=now, step=0, summary=summary).SerializeToString())
    partial.replace(path)
