"""TensorBoard: every scalar under its tag, at its step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trainhooks.shown import shown
from trainhooks.sinks.base import Record, Sink, entry_labels
from trainhooks.store import Layout


class TensorBoardSink(Sink):
    """Writes events to `log_dir`, or to a `SummaryWriter` that the loop has already.

    The variables that need the run's last record come at the end, at the steps that they belong to.
    Raises ImportError, naming the extra, where tensorboard is not installed.
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

    def open(self, layout: Layout, *, restart_step: int | None = None) -> None:
        """Open the event file; a restart hides the events beyond it."""
        self._labels = entry_labels(layout)
        if self._owns:
            purge = None if restart_step is None else restart_step + 1
            self._writer = self._make(str(self.log_dir), purge_step=purge)

    def write(self, record: Record) -> None:
        """Add every scalar of the record."""
        self._steps.append(record.step)
        for tag, number in record.scalars.items():
            self._writer.add_scalar(shown(tag), number, record.step)

    def finish(self, values: Mapping[str, np.ndarray]) -> None:
        """Add the whole-run variables; rows of records before a restart are left to the store."""
        rows = len(self._steps)
        for row, step in enumerate(self._steps):
            final = {name: value[len(value) - rows + row] for name, value in values.items()}
            for tag, number in Record(step, final, labels=self._labels).scalars.items():
                self._writer.add_scalar(shown(tag), number, step)

    def close(self) -> None:
        """Flush, and close the writer if it is ours."""
        if self._writer is not None:
            self._writer.flush()
            if self._owns:
                self._writer.close()
                self._writer = None
