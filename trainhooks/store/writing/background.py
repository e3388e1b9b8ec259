"""Writing in the background: the training thread copies a record into a bounded queue, threads do the rest.

A signal handler may raise anywhere in the training thread, so that thread takes no lock that Python code would have to
give back, and never writes: it sends records and orders through queues whose every call is one step in C, and waits
for answers with a bound. What an interrupt cuts off is the waiting; the order is carried out all the same.
"""

from __future__ import annotations

import os
import queue
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from trainhooks.core.threads import python_ends, start_threads
from trainhooks.store.errors import StoreError
from trainhooks.store.format.layout import SNAPSHOT
from trainhooks.store.format.validation import record_arrays
from trainhooks.store.writing.fold_progress import CalledOffError
from trainhooks.store.writing.options import Writing
from trainhooks.store.writing.room import Room
from trainhooks.store.writing.writer import StoreWriter, Values

# beyond so many blocks in the journal, records wait for the fold: a slow disk must not fill with unfolded matrices
_MOST_BLOCKS_WAITING = 2
STALL_SECONDS = 120.0
"""Nothing has moved for so long: the disk hangs, and nobody waits for it any longer."""
_LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class _Waiting:
    step: int
    arrays: Mapping[str, np.ndarray]
    size: int
    copied: bool
    rows: tuple[int, int] | None


@dataclass(frozen=True)
class _Order:
    """Something to do when all records before it are durable; its answer is the error that the caller must hear."""

    action: Callable[[], None]
    answer: queue.SimpleQueue[Exception | None] = field(default_factory=queue.SimpleQueue)


class BackgroundWriter:
    """A `StoreWriter` behind a queue: `append` costs one copy of the matrix, or nothing where the caller gives it away.

    `durable_step` says up to where records are safe. What goes wrong in a thread is raised once, at the next `append`,
    `flush` or `close`; from then on nothing is recorded, and what was durable stays. Nothing waits longer than
    `STALL_SECONDS` for a disk that does not move. Memory: the queue's bytes, and one matrix more.
    """

    def __init__(self, writer: StoreWriter, *, writing: Writing) -> None:
        try:
            self._set_up(writer, writing)
            start_threads(*reversed(self._threads))
        except BaseException as error:
            if hasattr(self, "_threads"):
                self._stop(error)
                self._inbox.put(_Order(self._let_go))  # for those that an interrupt has left running
            writer.release()
            raise

    def _set_up(self, writer: StoreWriter, writing: Writing) -> None:
        self._writer, self._writing = writer, writing
        self._room = Room(writing.memory_bytes(writer.layout))
        self._inbox: queue.SimpleQueue[_Waiting | _Order] = queue.SimpleQueue()
        self._last = writer.last_step
        self._written = 0
        self._looked = 0  # of these, those that were there when the last fold began that has ended
        self._cpu = {"write": 0.0, "fold": 0.0}
        self._pid = os.getpid()
        self._error: BaseException | None = None
        self._unfolded = False  # nothing is folded any more
        self._stopped = self._ending = self._finishing = self._leaving = self._over = self._warned = False
        self._change = threading.Condition()  # between the two threads alone
        self._threads = [threading.Thread(target=self._serve, name="trainhooks-writer", daemon=True)]
        if writing.threads > 1:
            self._threads.append(threading.Thread(target=self._fold, name="trainhooks-fold", daemon=True))

    @property
    def durable_step(self) -> int | None:
        """The last step up to which every record is durable, None where there is none."""
        return self._writer.durable_step

    @property
    def queued_step(self) -> int | None:
        """The step of the last record that was taken, None where there is none: refused and dropped ones are not."""
        return self._last

    @property
    def attempt(self) -> int:
        """See `StoreWriter.attempt`."""
        return self._writer.attempt

    @property
    def dropped(self) -> int:
        """Records left out because the queue was full."""
        return self._writer.dropped

    @property
    def cpu_seconds(self) -> float:
        """CPU time that its threads have taken so far, up to the record and the block that they are at."""
        return sum(self._cpu.values()) + self._writer.progress.helper_seconds

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
        if self._stopped and not self._over:
            return
        step = self._writer.check_step(step, last=self._last)
        if self._finishing or self._ending:
            raise ValueError(f"got step {step} after finish(); no record may follow it.")
        arrays = record_arrays(
            self._writer.layout, values, sketch=sketch, snapshot=snapshot, label_counts=label_counts, rows=rows
        )
        size = sum(array.nbytes for array in arrays.values())
        block = self._writing.backpressure == "block"
        if self._room.wait_for(size, block=block, over=lambda: self._stopped or self._over):
            owned = {
                name: array if keep and name == SNAPSHOT else self._room.copy(array) for name, array in arrays.items()
            }
            self._last = step  # before it is sent: a step that an interrupt cuts off is never sent twice
            self._inbox.put(_Waiting(step, owned, size, copied=not keep, rows=rows))
            self._room.give(size)
        elif not self._stopped:
            self._drop(step)

    def flush(self) -> None:
        """Wait until everything queued is durable, and blocks that are full are folded.

        Raises StoreError, once, where something could not be written.
        """
        if not self._carried_out(self._await_fold):
            raise self._stalled("flush")
        self._raise_once()

    def settle(self, *, seconds: float) -> bool:
        """Wait for so long at most until everything queued is durable; whether it is. Raises nothing."""
        return self._carried_out(lambda: None, seconds=seconds) and self._writer.last_step == self._last

    def finish(self, values: Mapping[str, np.ndarray]) -> None:
        """Write the whole-run variables, see `StoreWriter.finish`; no record may follow."""
        self._finishing = True  # the folding thread goes on: what is queued may have to wait for it

        def finish() -> None:
            self._end_fold()
            if not self._stopped:
                self._writer.finish(values)

        if not self._carried_out(finish):
            raise self._stalled("finish")
        self._raise_once()

    def close(self) -> None:
        """Write and fold what is left and mark the store complete; where recording had stopped, leave it as it is.

        May be called again, after an interrupt too: the first call's order is carried out all the same. When Python
        ends it leaves. Raises StoreError, once, where something could not be written.
        """
        if self._is_elsewhere():
            return
        if python_ends():
            self.detach()
            return

        def close() -> None:
            try:
                self._end_fold()
                if not self._stopped:
                    self._writer.close()
            except (StoreError, OSError) as error:
                self._stop(error)
            finally:
                self._let_go()

        if not self._carried_out(close):
            raise self._stalled("close")
        self._raise_once()

    def detach(self) -> None:
        """Make durable what is queued and let the store go as it is, not complete; nothing in a forked child."""
        if self._over or self._is_elsewhere():
            return

        def leave() -> None:
            self._writer.progress.called_off = True
            self._end_fold()
            self._let_go()

        self._leaving = True
        if threading.current_thread() in self._threads:  # collected here: this thread must go on, and hear of it later
            self._inbox.put(_Order(leave))
        else:
            self._carried_out(leave)

    leave = detach  # by its name of before

    def _is_elsewhere(self) -> bool:
        return os.getpid() != self._pid

    # -- the caller's thread ----------------------------------------------------------------------------------

    def _carried_out(self, action: Callable[[], None], *, seconds: float | None = None) -> bool:
        """Let the writing thread do something after all that is queued; whether it has, within so many seconds.

        Without a bound in seconds the wait ends where nothing has moved for long. Raises what the action does.
        """
        order = _Order(action)
        self._inbox.put(order)
        began = moved = time.monotonic()
        before = self._progress()
        while not self._over:
            with suppress(queue.Empty):
                if (error := order.answer.get(timeout=_LOOK_SECONDS)) is not None:
                    raise error
                return True
            now = time.monotonic()
            if (progress := self._progress()) != before:
                before, moved = progress, now
            if (seconds is not None and now - began >= seconds) or now - moved >= STALL_SECONDS:
                return False
        return True

    def _progress(self) -> tuple[int, int, int]:
        return self._written, self._writer.bytes_written, self._writer.progress.tiles

    def _stalled(self, action: str) -> StoreError:
        last = self._writer.durable_step
        safe = "nothing" if last is None else f"everything up to step {last}"
        return StoreError(
            f"cannot {action} the store {self._writer.storage}: its disk has taken nothing for {STALL_SECONDS:.0f} s. "
            f'In the store is {safe}; go on with mode="resume" when the disk answers.'
        )

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

    def _raise_once(self) -> None:
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

    # -- the writing thread -----------------------------------------------------------------------------------

    def _serve(self) -> None:
        """Records into the journal and orders, in turn, until one of these lets the store go."""
        try:
            while not self._over:
                item = self._inbox.get()
                if isinstance(item, _Order):
                    item.answer.put(self._obey(item))
                else:
                    self._write(item)
                del item  # or its matrix would be held until the next one comes
                self._cpu["write"] = time.thread_time()
        finally:
            self._over = True

    def _obey(self, order: _Order) -> Exception | None:
        """Carry an order out. What the disk refuses stops the recording, what is the caller's mistake is returned."""
        try:
            order.action()
        except (StoreError, OSError) as error:
            self._stop(error)
        except Exception as error:
            return error
        return None

    def _write(self, record: _Waiting) -> None:
        try:
            self._await_backlog()
            if not self._stopped:
                self._writer.journal(record.step, record.arrays, rows=record.rows)
                if self._writing.threads == 1 and not self._unfolded:
                    self._fold_unless_ending()
                    self._looked = self._written + 1
        except BaseException as error:  # whatever it is, the training thread must hear of it
            self._stop(error)
        finally:
            self._done(record)

    def _await_backlog(self) -> None:
        most = _MOST_BLOCKS_WAITING * self._writer.layout.block
        with self._change:
            while not (self._stopped or self._unfolded or self._leaving or self._writer.backlog < most):
                self._change.wait(_LOOK_SECONDS)

    def _await_fold(self) -> None:
        with self._change:
            while not (self._stopped or self._unfolded or self._ending or self._looked == self._written):
                self._change.wait(_LOOK_SECONDS)

    def _done(self, record: _Waiting) -> None:
        with self._change:
            self._written += 1
            self._change.notify_all()
        if record.copied and SNAPSHOT in record.arrays:
            self._room.keep(record.arrays[SNAPSHOT])
        self._room.take(record.size)

    def _end_fold(self) -> None:
        with self._change:
            self._ending = True
            self._change.notify_all()
        for thread in self._threads[1:]:
            thread.join()

    def _let_go(self) -> None:
        self._stopped = True
        self._writer.release()
        self._over = True

    # -- the folding thread -----------------------------------------------------------------------------------

    def _fold(self) -> None:
        """Full blocks into the arrays while the other thread goes on."""
        seen = -1
        try:
            while self._await_more_than(seen):
                seen = self._written
                self._fold_unless_ending()
                self._looked = seen
                self._cpu["fold"] = time.thread_time()
        except BaseException as error:  # as above
            self._stop(error)

    def _fold_unless_ending(self) -> None:
        """Fold what is full; where the run leaves or Python ends, nothing more: the journal has what is queued."""
        try:
            self._writer.fold()
            return
        except CalledOffError:
            pass
        except RuntimeError as error:
            # executors and new threads are refused even before the main thread counts as ended
            if not python_ends() and "shutdown" not in str(error):
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
            self._room.end()
            self._change.notify_all()
