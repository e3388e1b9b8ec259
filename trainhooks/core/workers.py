"""Processes that work for this one: started, kept busy, lost and ended in one way, for whoever has tasks."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from multiprocessing import connection
from threading import Thread
from typing import Any, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass
class WorkerPool:
    """An executor, how to get a new one where it broke, its number of workers, and how many tasks it has at a time."""

    executor: Executor
    renew: Callable[[], Executor]
    count: int
    under_way: int

    def submit(self, function: Callable[..., Result], *args: object) -> Future[Result]:
        """A task under way, on new workers where the old ones are gone."""
        try:
            return self.executor.submit(function, *args)
        except BrokenExecutor:
            self.executor = self.renew()
            return self.executor.submit(function, *args)

    def finished(
        self, tasks: Iterable[Task], start: Callable[[Task], Future[Result]], *, in_order: bool
    ) -> Iterator[tuple[Task, Future[Result]]]:
        """Each task with its future, done, in the order of the tasks or as they come; `start` submits one.

        At most `under_way` are under way. When the caller leaves off, what has not begun is called off.
        """
        left = iter(tasks)
        running: dict[Future[Result], Task] = {}
        try:
            while True:
                for task in islice(left, max(0, self.under_way - len(running))):
                    running[start(task)] = task
                if not running:
                    return
                done = {next(iter(running))} if in_order else wait(running, return_when=FIRST_COMPLETED).done
                for future in done:
                    wait([future])
                    yield running.pop(future), future
        finally:
            for future in running:
                future.cancel()


def is_lost_worker(error: BaseException) -> bool:
    """Whether an error says that a worker died, not that its task failed.

    Dask's is told by its name, so that Dask need not be there; it comes when handing the task to others did not help.
    """
    return isinstance(error, BrokenExecutor) or type(error).__name__ == "KilledWorker"


def usable_cores() -> int:
    """Processors that this process may use; a container or a batch system may leave it fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def local_pool(count: int) -> Iterator[WorkerPool]:
    """`count` fresh processes. They end when the pool is left: at once where an error or Ctrl-C leaves it.

    They are spawned: a forked child may inherit a lock that another thread of this process holds. Ctrl-C reaches every
    process of a terminal; this one answers it. Raises RuntimeError where they cannot start.
    """
    context = multiprocessing.get_context("spawn")
    leash, end = context.Pipe(duplex=False)

    def start() -> Executor:
        return ProcessPoolExecutor(count, mp_context=context, initializer=_serve, initargs=(leash,))

    def renew() -> Executor:
        pool.executor.shutdown(wait=False)
        return start()

    pool = WorkerPool(start(), renew, count, under_way=2 * count)
    try:
        _check_start(pool)
        yield pool
    except BaseException:
        end.close()
        raise
    finally:
        pool.executor.shutdown(cancel_futures=True)
        end.close()
        leash.close()


def _check_start(pool: WorkerPool) -> None:
    try:
        pool.executor.submit(os.getpid).result()
    except BrokenExecutor as error:
        raise RuntimeError(
            'worker processes cannot start. In a script, make this call under `if __name__ == "__main__":`, or pass '
            "workers=1 to stay in this process."
        ) from error


def _serve(leash: connection.Connection) -> None:
    """A worker's first act: leave Ctrl-C to the process that coordinates, and end with it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with, args=(leash,), daemon=True).start()


def _end_with(leash: connection.Connection) -> None:
    # a pool's worker would wait for work for ever; the leash alone could be held open by a fork of the parent
    parent = multiprocessing.parent_process()
    connection.wait([leash, *([] if parent is None else [parent.sentinel])])
    os._exit(1)


def given_pool(executor: Any, *, count: int, under_way: int) -> WorkerPool:
    """An executor of the caller's, or a `dask.distributed.Client`: it stays open, and is the caller's to renew."""
    if hasattr(executor, "get_executor"):
        # a client's own submit gives futures of another kind; pure tasks would share the fate of one that died
        executor = executor.get_executor(pure=False)
    return WorkerPool(executor, lambda: executor, count, under_way)


@contextmanager
def cluster_pool(address: str) -> Iterator[WorkerPool]:
    """The workers of a Dask cluster. Raises ImportError without `distributed`, OSError where nobody answers."""
    try:
        import distributed
    except ImportError as error:
        raise ImportError("a Dask cluster needs distributed: pip install 'trainhooks[cluster]'.") from error
    with distributed.Client(address, set_as_default=False) as client:
        count = max(1, len(client.scheduler_info()["workers"]))
        yield given_pool(client, count=count, under_way=2 * count)
