"""TensorBoard's event files that are ours: found by their names, taken over by a run that goes on, set aside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

EVENTS, FINAL = ".trainhooks", ".trainhooks-final"
"""How the names of our files end: what comes with each record, and what comes when the last one is known."""


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


def take_over(files: Sequence[Path], *, into: Any, upto: int) -> list[int]:
    """Write the events up to and including step `upto` into a `FileWriter`; returns their steps, each once.

    Steps rise in what is written, whatever restarts the files hold.
    """
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    events = [event for path in files for event in LegacyEventFileLoader(str(path)).Load()]
    kept = sorted((event for event in events if event.summary.value and event.step <= upto), key=lambda e: e.step)
    for event in kept:
        into.add_event(event, event.step, event.wall_time)
    return sorted({event.step for event in kept})
