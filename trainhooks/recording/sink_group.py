"""Where a recorder's records go: its sinks, opened, written to, finished and closed together."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainhooks.core.threads import python_ends
from trainhooks.metrics.group_convergence import NORM, convergence_to_final, kept_norms
from trainhooks.model.distributed import RankGroup
from trainhooks.model.rank_parts import RowShard
from trainhooks.recording.plan import Plan, advice, check_disk
from trainhooks.recording.resume import ResumePoint, opening_mode
from trainhooks.sinks import RankRowsSink, Record, Sink, StoreSink
from trainhooks.sinks.base import entry_labels, read_only
from trainhooks.store import Layout

logger = logging.getLogger("trainhooks")

BEFORE_ALL = -1
"""The step after which a run goes on that goes on with nothing: no record lies before it."""


class SinkGroup:
    """The sinks of one rank: rank 0 has all of them, and the store last; another has its piece of the store, or none.

    `store` is the store's sink where there is one, on every rank; `rows` is this rank's share of the stored matrices
    once they are open, None where rank 0 writes them whole; `labels` names the entries of their vectors, `shapes`
    says of each variable what a record holds. With `overwrite` a run that begins lets go what the sinks hold of an
    earlier one.

    Making it is collective. Raises what a sink's `check` does, ValueError or OSError; RuntimeError on the other ranks.
    """

    def __init__(
        self, sinks: Iterable[Sink], *, store: StoreSink | None, ranks: RankGroup, overwrite: bool = False
    ) -> None:
        self.store, self._overwrite = store, overwrite
        self.rows: RowShard | None = None
        self.labels: Mapping[str, tuple[str, ...]] = {}
        self.shapes: Mapping[str, tuple[int, ...]] = {}
        self._ranks = ranks
        given = _checked(sinks)
        self._sinks: list[Sink] = [*given, *([] if store is None else [store])] if ranks.is_rank0 else []
        self._last: int | None = None
        self._steps: list[int] = []  # with the sketches, where no store keeps them
        self._sketches: list[np.ndarray] = []
        self._norms: list[np.ndarray] = []
        with ranks.raise_together("use the sinks"):
            for sink in self._sinks:
                sink.check()

    @property
    def accepts_records(self) -> bool:
        """Whether records come here: to rank 0, which also says what is wrong with them, and to ranks with a piece."""
        return self._ranks.is_rank0 or bool(self._sinks)

    def add(self, sink: Sink) -> None:
        """One more, before `open`; only rank 0 uses it. Raises ValueError for what is no sink."""
        _checked([sink])
        if self._ranks.is_rank0:
            self._sinks.insert(0, sink)

    @property
    def durable_step(self) -> int | None:
        """The last step up to which every record is safe in the store; None without a store or a record."""
        return None if self.store is None else self.store.durable_step

    def open(self, layout: Layout, *, plan: Plan, weight: Tensor, restart: ResumePoint | None, force: bool) -> None:
        """Open them for records of this layout, whose matrix is `weight` (collective).

        Raises ValueError where ranks differ in what they store, and where `restart` and the store do not belong
        together; OSError where the plan does not fit on the disk, which `force` lets pass; RuntimeError on the other
        ranks where rank 0 fails.
        """
        self.labels = entry_labels(layout)
        self.shapes = {variable.name: layout.row_shape(variable) for variable in layout.variables}
        matrix = layout.vocab, layout.dim, layout.kept_bits
        self._ranks.check_same({"store": "none" if self.store is None else "one", "output embedding": matrix})
        if self.store is not None and self.store.folder is not None:  # at a URL one rank writes whole matrices
            self.rows = self._ranks.rows(weight, folder=self.store.folder.parent)
            self.store.pieces = 1 if self.rows is None else self.rows.pieces
        with self._ranks.raise_together("open the sinks"):
            if self._ranks.is_rank0:
                logger.info("recording %s", plan)
                if self.store is not None:
                    if large := advice(plan, layout=layout):
                        logger.log(logging.INFO if plan.records is None else logging.WARNING, "%s", large)
                    _settle_store(self.store, plan=plan, restart=restart, force=force)
                self._open_sinks(layout, restart=restart)
        if self.store is not None and self.rows is not None:
            self._open_piece(self.store, self.rows)

    def write(self, record: Record) -> None:
        """Give every sink a record; one that raises keeps no other from it."""
        self._last = record.step
        if self.store is None and record.sketch is not None:
            self._steps.append(record.step)
            self._sketches.append(record.sketch)
            self._norms.append(np.asarray(record.values.get(NORM, np.full(len(record.groups), np.nan))))
        with ExitStack() as writing:
            for sink in reversed(self._sinks):
                writing.callback(sink.write, record)

    @property
    def cpu_seconds(self) -> float:
        """CPU time that the sinks' own threads have taken."""
        return sum(sink.cpu_seconds for sink in self._sinks)

    def settle(self, *, seconds: float) -> bool:
        """Make what was written durable, within so many seconds; whether every sink could."""
        until = time.monotonic() + seconds
        settled = [sink.settle(seconds=max(0.0, until - time.monotonic())) for sink in self._sinks]
        return all(settled)

    def wait(self, *, seconds: float) -> bool:
        """Wait until the other ranks' pieces of the last record are in the store; False where they are not by then."""
        if self.store is None or self.rows is None or self._last is None:
            return True
        return self.store.wait(self._last, seconds=seconds)

    def finish(self) -> None:
        """Give every sink what needs the run's last record: each group's convergence to it, from the sketches.

        Nothing where there is no record, or neither store nor sketches; nor when Python ends: reading needs threads.
        """
        if self.store is not None and python_ends():
            return
        kept = None if self.store is None else self.store.read()
        steps = np.array(self._steps, dtype=np.int64) if kept is None else kept.steps
        if len(steps):
            sketches = np.array(self._sketches) if kept is None else kept.mapped_sketch()
            norms = np.array(self._norms) if kept is None else kept_norms(kept)
            final = convergence_to_final(
                torch.from_numpy(sketches),
                torch.from_numpy(steps),
                norms=None if norms is None else torch.from_numpy(norms),
            )
            values = read_only({name: value.numpy() for name, value in final.items()})
            with ExitStack() as finishing:  # one that raises keeps no other from it
                for sink in reversed(self._sinks):
                    finishing.callback(sink.finish, values)

    def close(self) -> None:
        """Close them all, the store last; one that cannot be closed keeps no other from it."""
        with ExitStack() as closing:
            for sink in reversed(self._sinks):
                closing.callback(sink.close)

    def _open_sinks(self, layout: Layout, *, restart: ResumePoint | None) -> None:
        anew = BEFORE_ALL if self._overwrite else None
        with ExitStack() as opened:  # where one sink fails, those that opened are closed
            for sink in self._sinks:
                sink.open(layout, restart_step=anew if restart is None else restart.step)
                opened.callback(sink.close)
            opened.pop_all()

    def _open_piece(self, store: StoreSink, rows: RowShard) -> None:
        """Where this rank is not the first but writes rows, it has a sink for these."""
        attempt = self._ranks.broadcast_object(store.attempt if self._ranks.is_rank0 else None)
        if rows.piece > 0:
            self._sinks = [
                RankRowsSink(
                    store.path,
                    piece=rows.piece,
                    pieces=rows.pieces,
                    rows=rows.rows,
                    attempt=attempt,
                    durability=store.writing.durability,
                )
            ]


def _checked(sinks: object) -> list[Sink]:
    """The sinks in a list. Raises ValueError for what is no sink, such as a path, and for one that is in no list."""
    if isinstance(sinks, Sink) or not isinstance(sinks, Iterable) or isinstance(sinks, str | Path):
        raise ValueError(f"sinks is {sinks!r}; pass a list of sinks, such as [th.JsonLinesSink('run.jsonl')].")
    given = list(sinks)
    for sink in given:
        if not isinstance(sink, Sink):
            raise ValueError(
                f"sinks takes instances of th.Sink, got {sink!r}; pass one, such as th.JsonLinesSink('run.jsonl'). "
                "A store's path goes to store=."
            )
    return given


def _settle_store(store: StoreSink, *, plan: Plan, restart: ResumePoint | None, force: bool) -> None:
    store.mode = opening_mode(restart, mode=store.mode, path=store.path, exists=store.exists)
    store.recorded = None if restart is None else restart.recorded
    if store.folder is not None:
        check_disk(store.folder, needed=plan.disk_bytes, force=force)
