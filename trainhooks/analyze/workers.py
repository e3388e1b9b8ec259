"""Where checkpoints are measured: in this process, in local processes, or on a cluster; the same results."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from threading import Thread
from typing import Any

import torch

from trainhooks.analyze.job import Failed, Job, Measurement
from trainhooks.analyze.measure import CheckpointMeasurer, run_chunk

CHUNK = 8
TRIES = 2
DEFAULT_WORKERS = 4

Outcomes = Iterator[Measurement | Failed]


@dataclass
class Workers:
    """An executor, how to get a new one where it broke, what its loss of a worker looks like, and how many it has."""

    executor: Executor
    renew: Callable[[], Executor]
    lost: tuple[type[BaseException], ...]
    count: int


def default_workers(checkpoints: int) -> int:
    """Local processes for so many checkpoints: up to 4, no more than cores or chunks; 1 is this process itself."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(DEFAULT_WORKERS, cores, -(-checkpoints // CHUNK)))


def here(job: Job, indices: Sequence[int]) -> Outcomes:
    """Measure in this process, one after another; torch's thread count is put back at the end."""
    before = torch.get_num_threads()
    torch.set_num_threads(job.threads)
    try:
        if indices:
            yield from CheckpointMeasurer(job).measure(indices)
    finally:
        torch.set_num_threads(before)


def spread(job: Job, indices: Sequence[int], workers: Workers) -> Outcomes:
    """Measure on workers; outcomes come in order of steps.

    Chunks of neighbouring checkpoints travel together, as each needs the one before. A chunk whose worker died is
    measured again, one checkpoint at a time; one that takes two more workers with it is given up. At most two chunks a
    worker are under way.
    """
    size = max(1, min(CHUNK, -(-len(indices) // workers.count)))
    waiting = deque(tuple(indices[start : start + size]) for start in range(0, len(indices), size))
    running: deque[tuple[tuple[int, ...], Future[list[Measurement | Failed]]]] = deque()
    deadly: set[int] = set()
    try:
        while waiting or running:
            while waiting and len(running) < 2 * workers.count:
                chunk = waiting.popleft()
                running.append((chunk, _submit(workers, job, chunk, deadly)))
            chunk, future = running.popleft()
            try:
                outcomes = future.result()
            except workers.lost:
                for index in chunk:
                    yield from _alone(workers, job, index, deadly)
            else:
                yield from outcomes
    finally:
        for _, future in running:
            future.cancel()


def _submit(workers: Workers, job: Job, chunk: tuple[int, ...], deadly: set[int]) -> Future[list[Measurement | Failed]]:
    """The chunk under way, on new workers where the old ones are gone."""
    try:
        return workers.executor.submit(run_chunk, job, chunk, frozenset(deadly))
    except BrokenExecutor:
        workers.executor = workers.renew()
        return workers.executor.submit(run_chunk, job, chunk, frozenset(deadly))


def _alone(workers: Workers, job: Job, index: int, deadly: set[int]) -> Outcomes:
    for _ in range(TRIES):
        try:
            outcomes = _submit(workers, job, (index,), deadly).result()
        except workers.lost:
            continue
        yield from outcomes
        return
    step = job.entries[index].step
    deadly.add(step)
    yield Failed(step, f"the worker that measured it died, and {TRIES} times more when it was tried again alone")


def _end_with_parent() -> None:
    """End this worker when its parent dies, however it does; a pool's worker would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()


@contextmanager
def local_workers(count: int) -> Iterator[Workers]:
    """`count` fresh processes. Raises RuntimeError where they cannot start."""
    context = multiprocessing.get_context("spawn")

    def start() -> Executor:
        return ProcessPoolExecutor(count, mp_context=context, initializer=_end_with_parent)

    def renew() -> Executor:
        workers.executor.shutdown(wait=False)
        return start()

    workers = Workers(start(), renew, (BrokenExecutor,), count)
    try:
        workers.executor.submit(os.getpid).result()
    except BrokenExecutor as error:
        raise RuntimeError(
            'worker processes cannot start. In a script, call analyze() under `if __name__ == "__main__":`, or pass '
            "workers=1 to stay in this process."
        ) from error
    try:
        yield workers
    finally:
        workers.executor.shutdown(cancel_futures=True)


@contextmanager
def given_workers(executor: Executor, *, count: int) -> Iterator[Workers]:
    """An executor of the caller's, which stays open; a broken one is the caller's to renew."""
    yield Workers(executor, lambda: executor, (BrokenExecutor,), count)


@contextmanager
def cluster_workers(address: str) -> Iterator[Workers]:
    """The workers of a Dask cluster. Raises ImportError without `distributed`, OSError where nobody answers."""
    try:
        import distributed
    except ImportError as error:
        raise ImportError("a Dask cluster needs distributed: pip install 'trainhooks[cluster]'.") from error
    with distributed.Client(address, set_as_default=False) as client:
        executor: Any = client.get_executor(pure=False)
        # a worker that dies hands its tasks to the others; this is what comes when that did not help
        lost = (BrokenExecutor, distributed.KilledWorker)
        yield Workers(executor, lambda: executor, lost, max(1, len(client.scheduler_info()["workers"])))
