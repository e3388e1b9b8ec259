"""The counting of a corpus: pieces to workers, tallies into one, each piece exactly once whatever happens."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from trainhooks.core.token_counts import TokenCounts
from trainhooks.core.workers import WorkerPool, given_pool, is_lost_worker, local_pool, usable_cores
from trainhooks.corpora.base import CorpusChunk, Settings, Tally
from trainhooks.corpora.resume import Partial, tokenizer_hash

_TASK_BYTES, _TASK_PIECES = 1 << 25, 256  # small files travel together: a tally is as big as the vocabulary
_WORKER_BYTES = 1 << 30  # below this a worker's start (it imports this package) costs more than it saves
_IN_FLIGHT = 64  # tasks handed to an executor of unknown width: their tallies wait in memory


@dataclass(frozen=True)
class Report:
    """How the counting went: pieces in all and those taken from an earlier, interrupted call; tokens read (left-out
    ones included); bad documents skipped, and the first few in words; wall-clock seconds of this call."""

    pieces: int
    resumed: int
    tokens: int
    skipped: int
    problems: tuple[str, ...]
    seconds: float


class _Progress(Protocol):
    def advance(self, size: int, tokens: int) -> None: ...


def count_corpus(
    sources: Iterable[CorpusChunk],
    *,
    settings: Settings,
    workers: int | None = None,
    resume: Path | None = None,
    progress: bool = False,
    executor: Any = None,
) -> tuple[TokenCounts, Report]:
    """Count the pieces that `open_sources` gives; the counts do not depend on their order, nor on who counts them.

    `workers` is the number of local processes; by default one a processor, and no more than one for every GB
    (1: in this process). Scripts that ask for more need the usual `if __name__ == "__main__":`. `executor` counts
    elsewhere instead: a `concurrent.futures` executor, or a `dask.distributed.Client` whose workers see the same files.

    `resume` names a file that keeps what is done, every few seconds and when counting stops for any reason; a
    later call with the same pieces and settings goes on from it, and counts nothing twice. It stays after success,
    so that nothing is lost before the counts are saved: delete it then. `progress` draws a bar on stderr.

    The counts' `corpus_hash` is made of the pieces' fingerprints in sorted order, `tokenizer_hash` is the SHA-256 of
    the tokenizer's file.

    Raises ValueError for what cannot be counted, naming file and position, for no or repeated pieces, where nothing
    counts, and for a `resume` file that is damaged or of another corpus; ChildProcessError where a worker dies.
    """
    began = time.monotonic()
    pieces = _checked(sources, workers)
    total = sum(piece.size for piece in pieces)
    partial = Partial.open(resume, pieces=pieces, settings=settings)
    resumed = len(partial.done)
    left = [piece for piece in pieces if piece.key not in partial.done]
    meter = _bar(total, done=total - sum(piece.size for piece in left)) if progress else nullcontext(None)
    with partial.kept(), meter as shown, _pool(workers, executor, left) as pool:
        for batch, tally in _tallies(_batches(left), settings, pool, resume):
            partial.add(batch, tally)
            if shown is not None:
                shown.advance(sum(piece.size for piece in batch), tally.tokens)
    return _result(pieces, partial, settings, resumed=resumed, began=began)


def _checked(sources: Iterable[CorpusChunk], workers: int | None) -> list[CorpusChunk]:
    if workers is not None and workers < 1:
        raise ValueError(f"workers is {workers}; needed 1 or more processes, or None for one a processor.")
    pieces = sorted(sources, key=lambda piece: piece.key)
    if not pieces:
        raise ValueError("the corpus has no pieces, so there is nothing to count: name files that hold something.")
    for one, other in pairwise(pieces):
        if one.key == other.key:
            raise ValueError(f"the piece {one.key} is given twice: name each file once.")
    return pieces


def _result(
    pieces: Sequence[CorpusChunk], partial: Partial, settings: Settings, *, resumed: int, began: float
) -> tuple[TokenCounts, Report]:
    tally = partial.tally
    if not tally.counts.any():
        raise ValueError(
            f"nothing in the corpus counts: {tally.tokens} tokens were read from {len(pieces)} pieces, "
            f"{tally.skipped} bad documents skipped, and the rule is: {settings.rule.words()}."
        )
    digest = hashlib.sha256("\n".join(sorted(piece.fingerprint for piece in pieces)).encode()).hexdigest()
    counts = TokenCounts(tally.counts, tally.documents, tokenizer_hash(settings), digest, settings.rule.words())
    seconds = time.monotonic() - began
    return counts, Report(len(pieces), resumed, tally.tokens, tally.skipped, tuple(tally.problems), seconds)


def _batches(pieces: Iterable[CorpusChunk]) -> Iterator[list[CorpusChunk]]:
    """Pieces in tasks of at least 32 MB, or of 256 of them."""
    batch: list[CorpusChunk] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += piece.size
        if size >= _TASK_BYTES or len(batch) == _TASK_PIECES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def tally_pieces(pieces: Sequence[CorpusChunk], settings: Settings) -> Tally:
    """The merged tally of some pieces: what one worker does at a time."""
    whole = Tally(np.zeros(settings.vocab_size, dtype=np.int64), documents=0)
    for piece in pieces:
        whole.add(piece.tally(settings))
    return whole


@contextmanager
def _pool(workers: int | None, executor: Any, pieces: Sequence[CorpusChunk]) -> Iterator[WorkerPool | None]:
    """Who counts: None for this process itself."""
    if executor is not None:
        yield given_pool(executor, count=_IN_FLIGHT, under_way=_IN_FLIGHT)
        return
    size = sum(piece.size for piece in pieces)
    count = workers or min(usable_cores(), 1 + size // _WORKER_BYTES)
    if count == 1 or len(pieces) < 2:
        yield None
        return
    with local_pool(count) as pool:
        yield pool


def _tallies(
    batches: Iterator[list[CorpusChunk]], settings: Settings, pool: WorkerPool | None, resume: Path | None
) -> Iterator[tuple[list[CorpusChunk], Tally]]:
    """Every batch with its tally, as they come; on an error what is under way is called off."""
    if pool is None:
        for batch in batches:
            yield batch, tally_pieces(batch, settings)
        return

    def start(batch: list[CorpusChunk]) -> Future[Tally]:
        return pool.submit(tally_pieces, batch, settings)

    for batch, future in pool.finished(batches, start, in_order=False):
        if (error := future.exception()) is None:
            yield batch, future.result()
        elif is_lost_worker(error):
            kept = f"what was done is kept in {resume}: run again to go on" if resume else "nothing is kept"
            raise ChildProcessError(
                f"a worker process died while counting (killed, or out of memory?); {kept}, with fewer workers if "
                "memory was short."
            ) from error
        else:
            raise error


@contextmanager
def _bar(total: int, *, done: int) -> Iterator[_Progress]:
    """A bar on stderr: share of the bytes, tokens a second of this call, time left."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from trainhooks.core.printable import plain_console

    columns = BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn()
    with Progress(TextColumn("counting"), *columns, console=plain_console(stderr=True)) as bar:
        yield _Meter(bar, bar.add_task("counting", total=total, completed=done, rate=""))


class _Meter:
    """Feeds a bar with what has been counted."""

    def __init__(self, bar: Any, task: Any) -> None:
        self._bar, self._task = bar, task
        self._tokens, self._began = 0, time.monotonic()

    def advance(self, size: int, tokens: int) -> None:
        self._tokens += tokens
        rate = self._tokens / max(time.monotonic() - self._began, 1e-9)
        self._bar.update(self._task, advance=size, rate=f"{rate / 1e6:.1f} M tokens/s")
