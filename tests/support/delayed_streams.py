"""A device whose moves happen late: what is overwritten too early, or read too early, comes out wrong."""

from __future__ import annotations

from collections.abc import Callable

import torch


class DelayedEvent:
    """After the first `moves` of a device's moves."""

    def __init__(self, streams: DelayedStreams, moves: int) -> None:
        self.streams, self.moves = streams, moves

    def query(self) -> bool:
        """As `Event`."""
        return self.streams.done >= self.moves

    def synchronize(self) -> None:
        """As `Event`; counts where there was something to wait for."""
        self.streams.host_waits += not self.query()
        self.streams.run(self.moves)


class DelayedStreams:
    """`Streams` on the host. A move is done when somebody waits for it, or `lag` moves later.

    The training stream is the host's own order of work: it never runs behind, so a move sees what its source holds
    when it is done, and not when it was asked for.
    """

    device = torch.device("cpu")

    def __init__(self, *, lag: int | None = None) -> None:
        self.lag = lag
        self.queued: list[Callable[[], None]] = []
        self.done = 0
        self.host_waits = self.holds = 0
        self.pinned_bytes: list[int] = []
        self.moved_bytes: list[int] = []

    def copy_async(self, pairs):
        """As `Streams`."""

        def copy() -> None:
            for target, source in pairs:
                target.copy_(source, non_blocking=True)

        self.queued.append(copy)
        self.moved_bytes.append(sum(source.nbytes for _, source in pairs))
        if self.lag is not None:
            self.run(len(self.queued) - self.lag)
        return DelayedEvent(self, len(self.queued))

    def wait_event(self, event) -> None:
        """As `Streams`: the host goes on, so it is no wait of the host."""
        self.holds += not event.query()
        self.run(event.moves)

    def pinned(self, size_bytes):
        """As `Streams`, full of what must not be read."""
        self.pinned_bytes.append(size_bytes)
        return torch.full((size_bytes,), 0xAB, dtype=torch.uint8)

    def run(self, moves: int) -> None:
        """Do the first `moves` of them, as far as they are not done."""
        while self.done < moves:
            self.queued[self.done]()
            self.done += 1
