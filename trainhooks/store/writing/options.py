"""How a store is written: what a run chooses."""

from __future__ import annotations

from dataclasses import dataclass

from trainhooks.store.format.layout import Layout
from trainhooks.store.storage.base import DURABILITIES

_LEAST_QUEUE_BYTES = 256 << 20


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

    @property
    def fold_threads(self) -> int:
        """Threads that compress while a block is folded."""
        return max(1, self.threads - 1)

    def memory_bytes(self, layout: Layout) -> int:
        """Bytes of records that wait for the writer at most."""
        record = 4 * layout.vocab * layout.dim + 8 * layout.vocab if layout.snapshots else 1 << 20
        return max(_LEAST_QUEUE_BYTES, 2 * record) if self.queue_bytes is None else self.queue_bytes
