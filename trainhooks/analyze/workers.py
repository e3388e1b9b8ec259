"""Where checkpoints are measured: in this process, or on workers; the same results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress

import torch

from trainhooks.analyze.job import FAILURES, Failed, Job, Measurement
from trainhooks.analyze.measure import CheckpointMeasurer, run_chunk
from trainhooks.checkpoints.opening import is_local
from trainhooks.core.workers import WorkerPool, is_lost_worker, usable_cores

CHUNK = 8
TRIES = 2
DEFAULT_WORKERS = 4

Outcomes = Iterator[Measurement | Failed]
Measure = Callable[[tuple[int, ...]], Future[list[Measurement | Failed]]]


def default_workers(checkpoints: int) -> int:
    """Local processes for so many checkpoints: up to 4, no more than cores or chunks; 1 is this process itself."""
    return max(1, min(DEFAULT_WORKERS, usable_cores(), -(-checkpoints // CHUNK)))


def here(job: Job, indices: Sequence[int]) -> Outcomes:
    """Measure in this process, one after another; torch's thread count is put back at the end."""
    before = torch.get_num_threads()
    torch.set_num_threads(job.threads)
    try:
        if indices:
            yield from CheckpointMeasurer(job).measure(indices)
    finally:
        torch.set_num_threads(before)


def spread(job: Job, indices: Sequence[int], pool: WorkerPool) -> Outcomes:
    """Measure on workers; outcomes come in order of steps.

    Chunks of neighbouring checkpoints travel together, as each needs the one before. A chunk whose worker died is
    measured again, one checkpoint at a time; one that takes two more workers with it is given up.
    """
    size = max(1, min(CHUNK, -(-len(indices) // pool.count)))
    chunks = [tuple(indices[start : start + size]) for start in range(0, len(indices), size)]
    deadly: set[int] = set()
    _list_shared(job, chunks)

    def measure(chunk: tuple[int, ...]) -> Future[list[Measurement | Failed]]:
        return pool.submit(run_chunk, job, chunk, frozenset(deadly))

    for chunk, future in pool.finished(chunks, measure, in_order=True):
        error = future.exception()
        if error is None:
            yield from future.result()
            continue
        if not is_lost_worker(error):
            raise error
        for index in chunk:
            found = _alone(measure, index)
            if found is None:
                step = job.entries[index].step
                deadly.add(step)
                why = f"the worker that measured it died, and {TRIES} times more when it was tried again alone"
                found = [Failed(step, why)]
            yield from found


def _list_shared(job: Job, chunks: Sequence[tuple[int, ...]]) -> None:
    """Ask a hub here for the files of what several workers open: the first checkpoint and the one before each chunk.

    The listings travel with the suite. What cannot be listed is said by the worker whose turn it is.
    """
    for index in sorted({0, *(chunk[0] - 1 for chunk in chunks if chunk[0])}):
        if not is_local(job.entries[index].location):
            with suppress(*FAILURES):
                job.suite.open(job.entries[index])


def _alone(measure: Measure, index: int) -> list[Measurement | Failed] | None:
    """Outcomes of one checkpoint; None where it took every worker with it that tried."""
    for _ in range(TRIES):
        future = measure((index,))
        error = future.exception()
        if error is None:
            return future.result()
        if not is_lost_worker(error):
            raise error
    return None
