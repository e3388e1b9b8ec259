"""Writing in the background: the training thread copies a record into a bounded queue, threads do the rest."""

from __future__ import annotations

import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from trainhooks.store.errors import StoreError
from trainhooks.store.layout import SNAPSHOT, Layout
from trainhooks.store.place import DURABILITIES
from trainhooks.store.record import record_arrays
from trainhooks.store.writer import StoreWriter, Values

_LEAST_QUEUE_BYTES = 256 << 20
# beyond so many blocks in the journal, records wait for the fold: a slow disk must not fill with unfolded matrices
_MOST_BLOCKS_WAITING = 2


@dataclass(frozen=True, kw_only=True)
class Writing:
    """How a store is written.

    - `durability`: "process" survives the process' death (SIGKILL), "power" also a power cut: files are synced.
    - `backpressure`: where the queue is full, "block" waits for room, "drop" leaves the record out: counted in
      `dropped`, in the store's attributes, and said once as a warning.
    - `queue_bytes`: the most bytes of records that wait for the writer; None takes two records, 256 MiB at least.
    - `threads`: 1 writes and folds in one thread; n > 1 write in one and fold in another, which compresses in n - 1.
    - `on_error`: where the disk refuses, "raise" stops the run at its next record, "continue" lets it go on
      unrecorded and says so once as a warning.

    Raises ValueError for other words, and numbers below 1.
    """

    durability: str = "process"
    backpressure: str = "block"
    queue_bytes: int | None = None
    threads: int = 2
    on_error: str = "raise"

    def __post_init__(self) -> None:
        words = {
            "durability": DURABILITIES,
            "backpressure": ("block", "drop"),
            "on_error": ("raise", "continue"),
        }
        for name, known in words.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; use one of {', '.join(known)}.")
        for name in ("queue_bytes", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; needed a whole number of 1 or more.")

    def memory_bytes(self, layout: Layout) -> int:
        """Bytes of records that wait for the writer at most."""
        record = 4 * layout.vocab * layout.dim + 8 * layout.vocab if layout.snapshots else 1 << 20
        return max(_LEAST_QUEUE_BYTES, 2 * record) if self.queue_bytes is None else self.queue_bytes


@dataclass(frozen=True)
class _Waiting:
    step: int
    arrays: Mapping[str, np.ndarray]
    size: int
    copied: bool
    rows: tuple[int, int] | None


class BackgroundWriter:
    """A `StoreWriter` behind a queue: `append` costs one copy of the matrix, or nothing where the caller gives it away.

    `durable_step` says up to where records are safe. What goes wrong in a thread is raised once, at the next `append`,
    `flush` or `close`; from then on nothing is recorded, and what was durable stays. Memory: the queue's bytes, and one
    matrix more.
    """

    def __init__(self, writer: StoreWriter, *, writing: Writing) -> None:
        self._writer, self._writing = writer, writing
        self._room = writing.memory_bytes(writer.layout)
        self._queue: deque[_Waiting] = deque()
        self._spare: list[np.ndarray] = []
        self._queued_bytes = 0
        self._in_hand = False
        self._last = writer.last_step
        self._written = 0
        self._pid = os.getpid()
        self._error: BaseException | None = None
        self._unfolded = False  # nothing is folded any more
        self._stopped = self._ending = self._closed = self._warned = False
        self._change = threading.Condition()
        self._threads = [threading.Thread(target=self._write, name="trainhooks-writer", daemon=True)]
        if writing.threads > 1:
            self._threads.append(threading.Thread(target=self._fold, name="trainhooks-fold", daemon=True))
        for thread in self._threads:
            thread.start()

    @property
    def durable_step(self) -> int | None:
        """The last step up to which every record is durable, None where there is none."""
        return self._writer.durable_step

    @property
    def attempt(self) -> int:
        """See `StoreWriter.attempt`."""
        return self._writer.attempt

    @property
    def dropped(self) -> int:
        """Records left out because the queue was full."""
        return self._writer.dropped

    def append(
        self,
        step: int,
        values: Values,
        *,
        sketch: np.ndarray | None = None,
        snapshot: np.ndarray | None = None,
        label_counts: np.ndarray | None = None,
        rows: tuple[int, int] | None = None,
        keep: bool = False,
    ) -> None:
        """Queue a record, see `StoreWriter.append`. `keep`: nobody changes `snapshot` any more, so it is not copied.

        A record larger than the whole queue waits until the queue is empty.

        Raises ValueError where the record does not fit the layout, and StoreError, once, where an earlier one could
        not be written.
        """
        self._raise_once()
        if self._stopped and not self._closed:
            return
        step = self._writer.check_step(step, last=self._last)
        if self._ending:  # nobody takes from the queue any more
            raise ValueError(f"got step {step} after finish(); no record may follow it.")
        arrays = record_arrays(
            self._writer.layout, values, sketch=sketch, snapshot=snapshot, label_counts=label_counts, rows=rows
        )
        size = sum(array.nbytes for array in arrays.values())
        if self._take_room(size):
            owned = self._owned(arrays, size, keep=keep)
            with self._change:
                self._queue.append(_Waiting(step, owned, size, copied=not keep, rows=rows))
                self._change.notify_all()
            self._last = step
        elif not self._stopped:
            self._drop(step)

    def flush(self) -> None:
        """Wait until everything queued is durable. Raises StoreError, once, where it cannot be."""
        with self._change:
            self._change.wait_for(lambda: self._stopped or not (self._queue or self._in_hand))
        self._raise_once()

    def finish(self, values: Mapping[str, np.ndarray]) -> None:
        """Write the whole-run variables, see `StoreWriter.finish`; no record may follow."""
        self.flush()
        if not self._stopped:
            self._end_threads()
            self._raise_once()
            self._try(lambda: self._writer.finish(values))

    def close(self) -> None:
        """Write and fold what is left and mark the store complete; where recording had stopped, leave it as it is.

        May be called again. Raises StoreError, once, where something could not be written.
        """
        try:
            self.flush()
            self._end_threads()
            self._raise_once()
            if not self._stopped:
                self._try(self._writer.close)
        finally:
            self._let_go()

    def leave(self) -> None:
        """Make durable what is queued and let the store go as it is, not complete; nothing in a forked child."""
        if self._closed or os.getpid() != self._pid:
            return
        if threading.current_thread() in self._threads:
            # collected here: this thread must go on, so that what is queued can be written
            threading.Thread(target=self.leave, name="trainhooks-leave").start()
            return
        with self._change:
            self._change.wait_for(lambda: self._stopped or not (self._queue or self._in_hand))
        self._let_go()

    def _let_go(self) -> None:
        self._closed = self._stopped = True
        self._end_threads()
        self._writer.abandon()

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except StoreError as error:
            self._stop(error)
            self._raise_once()

    def _take_room(self, size: int) -> bool:
        with self._change:

            def free() -> bool:
                return self._stopped or self._queued_bytes + size <= self._room or not self._queued_bytes

            if self._writing.backpressure == "block":
                self._change.wait_for(free)
            if self._stopped or not free():
                return False
            self._queued_bytes += size
            return True

    def _owned(self, arrays: Mapping[str, np.ndarray], size: int, *, keep: bool) -> dict[str, np.ndarray]:
        """Copies of what the caller may change; where there is no memory for them, the room is given back."""
        try:
            return {name: array if keep and name == SNAPSHOT else self._copy(array) for name, array in arrays.items()}
        except BaseException:
            with self._change:
                self._queued_bytes -= size
                self._change.notify_all()
            raise

    def _copy(self, array: np.ndarray) -> np.ndarray:
        # memory that is used again is not paged in again: a third of the time of a fresh copy
        with self._change:
            fits = self._spare and (self._spare[0].shape, self._spare[0].dtype) == (array.shape, array.dtype)
            target = self._spare.pop() if fits else None
        if target is None:
            return np.array(array, order="C")
        np.copyto(target, array)
        return target

    def _drop(self, step: int) -> None:
        self._writer.dropped += 1
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"step {step}: the store's queue is full, its record is left out, and so are others that find no room "
                "(said once; counted in the store). Record less often, give more queue_bytes, or pass "
                'backpressure="block".',
                RuntimeWarning,
                stacklevel=4,
            )

    def _write(self) -> None:
        """The writing thread: one record after the other into the journal."""
        try:
            while (record := self._next()) is not None:
                self._writer.journal(record.step, record.arrays, rows=record.rows)
                if self._writing.threads == 1 and not self._unfolded:
                    self._fold_unless_ending()
                self._done(record)
        except BaseException as error:  # whatever it is, the training thread must hear of it
            self._stop(error)

    def _next(self) -> _Waiting | None:
        most = _MOST_BLOCKS_WAITING * self._writer.layout.block

        def ready() -> bool:
            return bool(self._queue) and (self._unfolded or self._writer.backlog < most)

        with self._change:
            self._change.wait_for(lambda: self._stopped or (self._ending and not self._queue) or ready())
            if self._stopped or not self._queue:
                return None
            self._in_hand = True
            return self._queue.popleft()

    def _done(self, record: _Waiting) -> None:
        with self._change:
            self._in_hand = False
            self._queued_bytes -= record.size
            self._written += 1
            if record.copied and SNAPSHOT in record.arrays and not self._spare:
                self._spare.append(record.arrays[SNAPSHOT])
            self._change.notify_all()

    def _fold(self) -> None:
        """The folding thread: full blocks into the arrays while the other thread goes on."""
        seen = -1
        try:
            while self._await_more_than(seen):
                seen = self._written
                self._fold_unless_ending()
        except BaseException as error:  # as above
            self._stop(error)

    def _fold_unless_ending(self) -> None:
        """Fold what is full; where the interpreter ends, nothing more: what is queued still goes to the journal."""
        try:
            self._writer.fold()
        except RuntimeError as error:
            # executors and new threads are refused even before the main thread counts as ended
            if threading.main_thread().is_alive() and "shutdown" not in str(error):
                raise
            with self._change:
                self._unfolded = True
                self._change.notify_all()

    def _await_more_than(self, seen: int) -> bool:
        """Wait until more records are durable than have been seen; whether there is anything to go on for."""
        with self._change:
            self._change.notify_all()
            self._change.wait_for(lambda: self._stopped or self._ending or self._unfolded or self._written != seen)
            return not (self._stopped or self._ending or self._unfolded)

    def _stop(self, error: BaseException) -> None:
        with self._change:
            if not self._stopped:  # what fails after it is the same disk, and has been said
                self._error = error
            self._stopped = True
            self._in_hand = False
            self._queue.clear()
            self._spare.clear()
            self._change.notify_all()

    def _end_threads(self) -> None:
        with self._change:
            self._ending = True
            self._change.notify_all()
        for thread in self._threads:
            thread.join()

    def _raise_once(self) -> None:
        with self._change:
            error, self._error = self._error, None
        if error is None:
            return
        last = self._writer.durable_step
        safe = "nothing" if last is None else f"everything up to step {last}"
        text = f"recording has stopped: {error} In the store is {safe}."
        if self._writing.on_error == "continue" and isinstance(error, (StoreError, OSError)):
            warnings.warn(f"{text} The run goes on without it (said once).", RuntimeWarning, stacklevel=4)
        else:
            raise StoreError(text) from error
