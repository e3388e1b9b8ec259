"""The counting of a corpus: pieces to workers, tallies into one, each piece exactly once whatever happens."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from trainhooks.core.token_counts import TokenCounts
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
    with partial.kept(), meter as shown, _hands(workers, executor, left) as (pool, width):
        for batch, tally in _tallies(_batches(left), settings, pool, width, resume):
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
def _hands(workers: int | None, executor: Any, pieces: Sequence[CorpusChunk]) -> Iterator[tuple[Executor | None, int]]:
    """Who counts, and how many tasks they may have at a time: None for this process itself."""
    if executor is not None:
        # a Dask client's own submit returns futures of another kind
        yield (executor.get_executor() if hasattr(executor, "get_executor") else executor), _IN_FLIGHT
        return
    size = sum(piece.size for piece in pieces)
    width = workers or min(os.cpu_count() or 1, 1 + size // _WORKER_BYTES)
    if width == 1 or len(pieces) < 2:
        yield None, 1
        return
    # spawn: a forked child may inherit a lock that another thread of this process holds
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(width, context, initializer=_leave_interrupts) as pool:
        yield pool, 2 * width


def _leave_interrupts() -> None:
    """Ctrl-C reaches every process of a terminal; the one that coordinates answers it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _tallies(
    batches: Iterator[list[CorpusChunk]], settings: Settings, pool: Executor | None, width: int, resume: Path | None
) -> Iterator[tuple[list[CorpusChunk], Tally]]:
    """Every batch with its tally, as they come; on an error what is under way is called off."""
    if pool is None:
        for batch in batches:
            yield batch, tally_pieces(batch, settings)
        return
    running: dict[Future[Tally], list[CorpusChunk]] = {}
    try:
        while True:
            for batch in islice(batches, width - len(running)):
                running[pool.submit(tally_pieces, batch, settings)] = batch
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()
    except Exception as error:
        if not _is_death(error):
            raise
        kept = f"what was done is kept in {resume}: run again to go on" if resume else "nothing is kept"
        raise ChildProcessError(
            f"a worker process died while counting (killed, or out of memory?); {kept}, with fewer workers if memory "
            "was short."
        ) from error
    finally:
        for future in running:
            future.cancel()


def _is_death(error: Exception) -> bool:
    """Whether a worker was lost; Dask, whose error is told by its name so that it need not be there, tried it again."""
    return isinstance(error, BrokenExecutor) or type(error).__name__ == "KilledWorker"


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
