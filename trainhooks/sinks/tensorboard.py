"""TensorBoard: first what answers, then every scalar under its tag, vectors as histograms, pictures, the projector."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np

from trainhooks.core.printable import shown
from trainhooks.core.schedule import Schedule
from trainhooks.core.threads import start_threads
from trainhooks.sinks import overview
from trainhooks.sinks.background_work import BackgroundWork
from trainhooks.sinks.base import Record, Sink, check_folder, entry_labels
from trainhooks.sinks.event_files import ABOUT, EVENTS, FINAL, own_files, set_aside, take_over, write_about
from trainhooks.sinks.host_tags import PREFIX, host_scalars, prefixed
from trainhooks.sinks.pictures import WHEN, Pictures, can_draw
from trainhooks.sinks.projector import FrequentRows
from trainhooks.sinks.run_texts import run_texts
from trainhooks.store import Layout

MOST_WAITING = 256
"""Records without their matrix that wait to be drawn; the next one waits for room."""


class TensorBoardSink(Sink):
    """Writes events to `log_dir`, or to a `SummaryWriter` that the loop has already, as `trainhooks/...` in either.

    A `log_dir` gets more beside every scalar: a short `overview` that stands first, charts for the dashboard Custom
    Scalars, provenance as text, and in the end the most frequent tokens' rows for the projector. Where `pictures`
    fires (0, 1, 4, 16 ... by default; None: never), the rows' norms as a histogram and images: frequency and
    convergence so far, the probe's prediction against the truth, which dimensions it uses; images need matplotlib.
    All of it is written by a thread of its own.

    A loop's own writer has the loop's own curves and screen, so it gets neither that nor `loss` and `learning_rate`.
    The variables that need the run's last record come at the end, at the steps that they belong to, in a file of their
    own. Vectors along the vocabulary or the embedding's dimensions are histograms of their finite entries. What says
    that all is well (no row left out, no update skipped) is drawn from when it changes.

    In a `log_dir` that is there a run that goes on takes over its own events up to where it goes on, and the curves to
    its former end go. Those of an earlier run are moved into a subfolder, with `mode="overwrite"` deleted; files that
    others wrote stay. Raises ImportError, naming the extra, where tensorboard is not installed.
    """

    def __init__(
        self, log_dir: str | Path | None = None, *, writer: Any = None, pictures: Schedule | None = WHEN
    ) -> None:
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
        self._when = pictures
        self._steps: list[int] = []
        self._labels: dict[str, tuple[str, ...]] = {}
        self._screen: _Screen | None = None
        self._work: BackgroundWork[Record] | None = None
        self._spent = 0.0  # CPU seconds of its thread, once that is over

    def check(self) -> None:
        """Raises NotADirectoryError where the folder cannot be made."""
        if self._owns:
            check_folder(self.log_dir)

    def open(self, layout: Layout, *, restart_step: int | None = None) -> None:
        """Open the event file; a restart takes over the events up to it."""
        self._labels = entry_labels(layout)
        before = own_files(self.log_dir, suffixes=(EVENTS, FINAL, ABOUT) if self._owns else (FINAL,))
        if restart_step is None:
            set_aside(before)
        if self._owns:
            self._writer = self._make(str(self.log_dir), filename_suffix=EVENTS)
            self._screen = _Screen(self._writer, layout, when=self._when)
            if restart_step is not None:
                events = [path for path in before if path.name.endswith(EVENTS)]
                into = self._writer.file_writer
                kept = take_over(events, into=into, upto=restart_step, wanted=self._screen.wanted)
                self._steps = list(kept)
                self._screen.remember(kept)
        if restart_step is not None:
            for path in before:
                path.unlink()
        if self._screen is not None:
            write_about(self.log_dir, layout=overview.layout(layout.groups), texts=run_texts(layout))
            self._work = BackgroundWork(self._screen.add, name="trainhooks-tensorboard", most=MOST_WAITING)
            weakref.finalize(self, _end, self._work, self._writer)  # a run that ends without close() keeps its events

    def write(self, record: Record) -> None:
        """Have every scalar of the record added, every vector, and a picture if one is due."""
        if self._screen is None:
            assert self._writer is not None, "open() comes first"
            self._steps.append(record.step)
            _add(record, host_scalars(record), into=self._writer)
            return
        assert self._work is not None, "it is closed"
        self._work.raise_once()
        self._steps.append(record.step)
        self._work.put(self._screen.lightened(record))

    @property
    def cpu_seconds(self) -> float:
        """See `Sink.cpu_seconds`."""
        return self._spent if self._work is None else self._work.cpu_seconds

    def settle(self, *, seconds: float) -> bool:
        """Have the events written that still wait in the writer's queue and buffer; whether they are."""
        done: list[bool] = []

        def flush() -> None:
            with suppress(Exception):  # what is wrong is for the next event to say
                settled = self._work is None or self._work.settle(seconds=seconds)
                self._writer.flush()
                done.append(settled)

        if self._writer is not None:
            thread = Thread(target=flush, daemon=True)
            start_threads(thread)
            thread.join(seconds)
        return self._writer is None or done == [True]

    def finish(self, values: Mapping[str, np.ndarray]) -> None:
        """Write the whole-run variables, in a file of their own: their steps begin again."""
        rows = min(len(self._steps), *(len(value) for value in values.values()))
        if self._work is not None:
            self._work.end()
        with self._make(str(self.log_dir), filename_suffix=FINAL) as writer:
            for row, step in enumerate(self._steps[len(self._steps) - rows :]):
                final = {name: value[len(value) - rows + row] for name, value in values.items()}
                record = Record(step, final, labels=self._labels)
                _add(record, prefixed(record.scalars), into=writer)
                if self._screen is not None:
                    _add_scalars(overview.overview(record.scalars), step, into=writer)
            if self._screen is not None and self._steps:
                self._screen.end(values, labels=self._labels, step=self._steps[-1], into=writer)

    def close(self) -> None:
        """Flush, and close the writer if it is ours. Raises what went wrong while it was written."""
        if self._writer is None or (self._work is not None and self._work.is_elsewhere):
            return
        if self._work is not None:
            self._work.end()
        self._writer.flush()
        if self._owns:
            self._writer.close()
            self._writer = None
            self._spent = self.cpu_seconds
            work, self._work = self._work, None
            if self._screen is not None:
                self._screen.write_rows(self.log_dir)
            if work is not None:
                work.raise_once()


def _end(work: BackgroundWork[Record], writer: Any) -> None:
    """Write what waits, in our queue and in the writer's own; a forked child has the threads of neither."""
    work.end()
    if not work.is_elsewhere:
        with suppress(Exception):  # nobody is left to hear of it
            writer.flush()


class _Screen:
    """What a folder of our own gets of each record. Knows nothing of the sink; `add` runs in the sink's thread."""

    def __init__(self, writer: Any, layout: Layout, *, when: Schedule | None) -> None:
        self._writer = writer
        self._when = when
        self._pictures = Pictures(layout) if when is not None and can_draw() else None
        self._rows = FrequentRows(layout)
        self._quiet = overview.Quiet()
        self.wanted = frozenset(PREFIX + tag for tag in (*overview.CURVES, *overview.DISTANCES))

    def remember(self, kept: Mapping[int, Mapping[str, float]]) -> None:
        """The numbers of the records before, by tag, of a run that goes on."""
        for step, numbers in kept.items():
            if self._pictures is not None:
                self._pictures.note(step, {tag.removeprefix(PREFIX): number for tag, number in numbers.items()})

    def lightened(self, record: Record) -> Record:
        """The record without its matrix, where no picture needs it: what waits must not hold many."""
        if record.snapshot is not None and record.rows is None:
            self._rows.take(record.step, record.snapshot)
        return replace(record, snapshot=record.snapshot if self._due(record) else None, sketch=None, label_counts=None)

    def add(self, record: Record) -> None:
        """Write the record."""
        scalars = record.scalars
        _add_scalars(overview.overview(scalars), record.step, into=self._writer)
        _add(record, prefixed(self._quiet.of(record)), into=self._writer)
        if self._pictures is not None:
            self._pictures.note(record.step, scalars)
        if self._due(record):
            self._add_state(record)

    def _due(self, record: Record) -> bool:
        return self._when is not None and self._when(record.step)

    def _add_state(self, record: Record) -> None:
        """What is too much for every record: how the rows' norms are spread, and the pictures."""
        if record.matrix is not None and record.rows is None:
            norms = np.linalg.norm(record.matrix, axis=1)
            if len(norms := norms[np.isfinite(norms)]):
                self._writer.add_histogram(overview.NORMS, norms, record.step)
        if self._pictures is not None:
            _add_images(self._pictures.of(record), record.step, into=self._writer)

    def end(
        self, values: Mapping[str, np.ndarray], *, labels: Mapping[str, tuple[str, ...]], step: int, into: Any
    ) -> None:
        """The last picture of the run's dynamics, whose distances to the end are known now."""
        name = overview.TO_END.replace("/", ".")
        if self._pictures is None or name not in values:
            return
        groups = labels.get(name, ())
        chosen = [group for group in (overview.WHOLE, overview.HEAD) if group in groups]
        final = {f"{overview.TO_END}/{group}": values[name][:, groups.index(group)] for group in chosen}
        _add_images(self._pictures.last(final), step, into=into)

    def write_rows(self, folder: Path) -> None:
        """The projector's files."""
        self._rows.write(folder)


def _add(record: Record, scalars: Mapping[str, float], *, into: Any) -> None:
    _add_scalars(scalars, record.step, into=into)
    for tag, vector in prefixed(record.vectors).items():
        if len(finite := vector[np.isfinite(vector)]):
            into.add_histogram(shown(tag), finite, record.step)


def _add_scalars(scalars: Mapping[str, float], step: int, *, into: Any) -> None:
    for tag, number in scalars.items():
        into.add_scalar(shown(tag), number, step)


def _add_images(images: Iterable[tuple[str, np.ndarray]], step: int, *, into: Any) -> None:
    for tag, image in images:
        into.add_image(tag, image, step, dataformats="HWC")
