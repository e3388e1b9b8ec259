"""Many suites as one job: their checkpoints share a cluster's workers, and each suite has a store of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, Executor, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock
from typing import Any

from trainhooks.analyze.job import FAILURES
from trainhooks.analyze.report import AnalysisReport
from trainhooks.analyze.run import Progress, Source, analyze_suite
from trainhooks.core.printable import page
from trainhooks.core.workers import cluster_pool

AT_ONCE = 8
Request = Source | Mapping[str, Any]


@dataclass(frozen=True)
class SuitesReport:
    """What became of many suites, by the stores' paths: `reports` of those that were measured, and why others `failed`
    as a whole (what is in their stores stays)."""

    reports: dict[Path, AnalysisReport] = field(default_factory=dict)
    failed: dict[Path, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain dicts, lists, numbers and strings, ready for JSON."""
        return {
            "reports": [report.to_dict() for report in self.reports.values()],
            "failed": {str(out): reason for out, reason in self.failed.items()},
        }

    def render(self) -> str:
        """The reports as text, for a terminal."""
        told = [report.render() for report in self.reports.values()]
        return "".join(told) + page(f"{out}: failed: {reason}" for out, reason in self.failed.items())


def analyze_suites(
    suites: Mapping[str, Request] | Mapping[Path, Request],
    *,
    scheduler: str | None = None,
    executor: Executor | None = None,
    at_once: int = AT_ONCE,
    mode: str = "resume",
    progress: Progress | None = None,
    **settings: Any,
) -> SuitesReport:
    """Analyse many suites, each into a store of its own; the numbers are those of `analyze_suite`, to the bit.

    `suites` maps each store's path to a suite (what `analyze_suite` takes), or to a mapping of `analyze_suite`'s
    arguments with `suite` among them, where some are to differ (`{"suite": ..., "counts": ...}`). `settings` are
    `analyze_suite`'s arguments for all of them.

    With a Dask cluster at `scheduler`, or an `executor` (a `dask.distributed.Client` too), up to `at_once` suites are
    under way together, and the workers have checkpoints of all of them; else one follows the other. Each store is
    written here, in order of steps. A suite that cannot be analysed is reported, and the others go on. Stopped, the
    same call goes on where it was (`mode` "resume"). `progress` is called with the checkpoints done and all of those
    that are known of yet.

    Raises ValueError for no suites, two of one store, and `scheduler` and `executor` at once.
    """
    if not suites:
        raise ValueError("no suites were given: pass a store's path and a suite for each.")
    requests = {Path(out): _request(given) for out, given in suites.items()}
    if len({out.expanduser().resolve() for out in requests}) < len(suites):
        raise ValueError(f"two of the {len(suites)} suites have one store: give each a path of its own.")
    whole = _Whole(progress)
    with _shared(scheduler, executor) as workers:

        def run(out: Path) -> AnalysisReport | str:
            given = {**settings, **workers, "mode": mode, **requests[out]}
            try:
                return analyze_suite(out=out, progress=whole.part(out), **given)
            except (*FAILURES, ImportError) as error:
                return str(error) or type(error).__name__

        found = _together(run, list(requests), whole, at_once) if workers else {out: run(out) for out in requests}
    return SuitesReport(
        {out: one for out, one in found.items() if isinstance(one, AnalysisReport)},
        {out: one for out, one in found.items() if isinstance(one, str)},
    )


def _request(given: Request) -> dict[str, Any]:
    return dict(given) if isinstance(given, Mapping) else {"suite": given}


@contextmanager
def _shared(scheduler: str | None, executor: Executor | None) -> Iterator[dict[str, Any]]:
    """The arguments that make every suite measure on the same workers; none where there are no such workers."""
    if scheduler is not None and executor is not None:
        raise ValueError("scheduler and executor both say where to measure: pass one of them.")
    if scheduler is None:
        yield {} if executor is None else {"executor": executor}
        return
    with cluster_pool(scheduler) as pool:
        yield {"executor": pool.executor, "workers": pool.count}


def _together(run: Any, outs: list[Path], whole: _Whole, at_once: int) -> dict[Path, AnalysisReport | str]:
    """`run` for each, some at a time; an interrupt ends those under way after the checkpoint they write."""
    threads = ThreadPoolExecutor(max(1, min(at_once, len(outs))), thread_name_prefix="trainhooks-suite")
    try:
        futures = {out: threads.submit(run, out) for out in outs}
        for future in wait(futures.values(), return_when=FIRST_EXCEPTION).done:
            future.result()
        return {out: future.result() for out, future in futures.items()}
    except BaseException:
        whole.stopped.set()
        raise
    finally:
        threads.shutdown(cancel_futures=True)


class _StoppedError(Exception):
    """Another suite's thread was interrupted."""


class _Whole:
    """The progress of all suites as one; where it was stopped, the next suite that reports ends."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._counts: dict[Path, tuple[int, int]] = {}
        self._lock = Lock()
        self.stopped = Event()

    def part(self, out: Path) -> Progress:
        """What one suite is to call."""

        def tell(done: int, total: int) -> None:
            if self.stopped.is_set():
                raise _StoppedError
            with self._lock:
                self._counts[out] = done, total
                sums = [sum(column) for column in zip(*self._counts.values(), strict=True)]
                if self._progress is not None:
                    self._progress(*sums)

        return tell
