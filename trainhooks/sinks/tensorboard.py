"""TensorBoard: every scalar under its tag, at its step; vectors without labels as histograms."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np

from trainhooks.core.printable import shown
from trainhooks.core.threads import start_threads
from trainhooks.sinks.base import Record, Sink, check_folder, entry_labels
from trainhooks.sinks.event_files import EVENTS, FINAL, own_files, set_aside, take_over
from trainhooks.sinks.host_tags import host_scalars, prefixed
from trainhooks.store import Layout


class TensorBoardSink(Sink):
    """Writes events to `log_dir`, or to a `SummaryWriter` that the loop has already, as `trainhooks/...` in either.

    A loop's own writer has the loop's own curves, so it gets no `loss` and no `learning_rate`. The variables that need
    the run's last record come at the end, at the steps that they belong to, in a file of their own. Vectors along the
    vocabulary or the embedding's dimensions are histograms of their finite entries.

    In a `log_dir` that is there a run that goes on takes over its own events up to where it goes on, and the curves to
    its former end go. Those of an earlier run are moved into a subfolder, with `mode="overwrite"` deleted; files that
    others wrote stay. Raises ImportError, naming the extra, where tensorboard is not installed.
    """

    def __init__(self, log_dir: str | Path | None = None, *, writer: Any = None) -> None:
        if (log_dir is None) == (writer is None):
            raise ValueError("TensorBoardSink takes a log_dir or a writer, one of the two.")
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError("TensorBoardSink needs tensorboard: pip install 'trainhooks[tensorboard]'") from error
        self.log_dir = Path(log_dir if log_dir is not None else writer.log_dir)
        self._make = SummaryWriter
        self._writer = writer
        self._owns = writer is None
        self._steps: list[int] = []
        self._labels: dict[str, tuple[str, ...]] = {}

    def check(self) -> None:
        """Raises NotADirectoryError where the folder cannot be made."""
        if self._owns:
            check_folder(self.log_dir)

    def open(self, layout: Layout, *, restart_step: int | None = None) -> None:
        """Open the event file; a restart takes over the events up to it."""
        self._labels = entry_labels(layout)
        before = own_files(self.log_dir, suffixes=(EVENTS, FINAL) if self._owns else (FINAL,))
        if restart_step is None:
            set_aside(before)
        if self._owns:
            self._writer = self._make(str(self.log_dir), filename_suffix=EVENTS)
            if restart_step is not None:
                events = [path for path in before if path.name.endswith(EVENTS)]
                self._steps = take_over(events, into=self._writer.file_writer, upto=restart_step)
        if restart_step is not None:
            for path in before:
                path.unlink()

    def write(self, record: Record) -> None:
        """Add every scalar of the record, and every vector."""
        self._steps.append(record.step)
        _add(record, prefixed(record.scalars) if self._owns else host_scalars(record), into=self._writer)

    def settle(self, *, seconds: float) -> bool:
        """Have the events written that still wait in the writer's queue and buffer; whether they are."""
        done: list[bool] = []

        def flush() -> None:
            with suppress(Exception):  # what is wrong is for the next event to say
                self._writer.flush()
                done.append(True)

        if self._writer is not None:
            thread = Thread(target=flush, daemon=True)
            start_threads(thread)
            thread.join(seconds)
        return self._writer is None or bool(done)

    def finish(self, values: Mapping[str, np.ndarray]) -> None:
        """Write the whole-run variables, in a file of their own: their steps begin again."""
        rows = min(len(self._steps), *(len(value) for value in values.values()))
        with self._make(str(self.log_dir), filename_suffix=FINAL) as writer:
            for row, step in enumerate(self._steps[len(self._steps) - rows :]):
                final = {name: value[len(value) - rows + row] for name, value in values.items()}
                record = Record(step, final, labels=self._labels)
                _add(record, prefixed(record.scalars), into=writer)

    def close(self) -> None:
        """Flush, and close the writer if it is ours."""
        if self._writer is not None:
            self._writer.flush()
            if self._owns:
                self._writer.close()
                self._writer = None


def _add(record: Record, scalars: Mapping[str, float], *, into: Any) -> None:
    for tag, number in scalars.items():
        into.add_scalar(shown(tag), number, record.step)
    for tag, vector in prefixed(record.vectors).items():
        if len(finite := vector[np.isfinite(vector)]):
            into.add_histogram(shown(tag), finite, record.step)
