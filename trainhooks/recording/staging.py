"""From a device to the host while training goes on: what records hold travels, and the loop waits for none of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

SLOTS = 2
"""Buffers of pinned memory: one is filled while the other is read."""
RECORDS_AT_ONCE = 16
"""Records without a matrix that travel together."""
ALIGNMENT = 16  # bytes; any dtype may begin there

StagedTensor = tuple[Tensor, torch.dtype]
"""A tensor and the dtype that it has on the host."""


class Stager(ABC):
    """Carries tensors of one device to the host, in the order in which they were sent.

    What is sent must not be written into before it has arrived; `copy` makes what may be. `waits` counts how often the
    training thread had to wait for the device since the stager was full.
    """

    waits = 0
    has_places = False
    """Whether copies have places of their own, which are held all along."""

    @abstractmethod
    def copy(self, matrix: Tensor, *, dtype: torch.dtype) -> Tensor:
        """The matrix as it is now, on its device; what is copied next may take its place, sent or kept or not."""

    @abstractmethod
    def stage(self, staged: Sequence[StagedTensor], *, note: Any, at_once: bool) -> None:
        """Send tensors off under a note, together with later ones unless `at_once`."""

    @abstractmethod
    def completed(self, *, wait: bool = False) -> Iterator[tuple[Any, list[Tensor]]]:
        """Notes and host tensors that nobody else holds, each once, in order; `wait` for all that was sent."""

    @abstractmethod
    def offload(self, matrix: Tensor, *, over: Tensor | None = None) -> Tensor:
        """What to hold of a matrix between records, to be read by `to_device`; `over` is given back for it.

        The matrix is what `copy` gave last, or lies on the host.
        """

    @abstractmethod
    def to_device(self, kept: Tensor) -> Tensor:
        """What is kept, where metrics read it; let it go after the record."""

    @abstractmethod
    def to_host(self, kept: Tensor) -> Tensor:
        """What is kept, on the host; waits for it."""


class BlockingStager(Stager):
    """For a model on the host, or on a `device` without pinned memory: everything arrives when it is sent."""

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = torch.device("cpu") if device is None else device
        self._done: deque[tuple[Any, list[Tensor]]] = deque()

    def copy(self, matrix: Tensor, *, dtype: torch.dtype) -> Tensor:
        """A tensor of its own."""
        return matrix.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)

    def stage(self, staged: Sequence[StagedTensor], *, note: Any, at_once: bool) -> None:
        """Move them, and wait where there is a device."""
        # the cast comes last: mps has no float64
        self._done.append((note, [tensor.detach().cpu().to(dtype) for tensor, dtype in staged]))

    def completed(self, *, wait: bool = False) -> Iterator[tuple[Any, list[Tensor]]]:
        """All that was sent."""
        while self._done:
            yield self._done.popleft()

    def offload(self, matrix: Tensor, *, over: Tensor | None = None) -> Tensor:
        """The matrix itself, or what came from the host on the device."""
        return matrix.to(self._device)

    def to_device(self, kept: Tensor) -> Tensor:
        """The matrix itself."""
        return kept

    def to_host(self, kept: Tensor) -> Tensor:
        """The matrix itself, or a copy where it lies on a device."""
        return kept.cpu()


class Event(Protocol):
    """A point in a stream's work."""

    def query(self) -> bool:
        """Whether the work up to here is done."""

    def synchronize(self) -> None:
        """Let the host wait until it is."""


class Streams(Protocol):
    """What a `PinnedStager` needs of a device: the stream that trains, and another one that moves."""

    device: torch.device

    def copy_async(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> Event:
        """Copy each (target on the host, source) aside, after all that the training stream was given so far."""

    def wait_event(self, event: Event) -> None:
        """Let what the training stream is given from now on begin after the event; the host goes on."""

    def pinned(self, size_bytes: int) -> Tensor:
        """Bytes of host memory that the device can reach."""


class CudaStreams:
    """`Streams` of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._aside = torch.cuda.Stream(device)

    def copy_async(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> Event:
        """See `Streams`. The sources must live until the event has happened."""
        given, done = torch.cuda.Event(), torch.cuda.Event()
        given.record(torch.cuda.current_stream(self.device))
        self._aside.wait_event(given)
        with torch.cuda.stream(self._aside):
            for target, source in pairs:
                target.copy_(source, non_blocking=True)
        done.record(self._aside)
        return done

    def wait_event(self, event: Any) -> None:
        """See `Streams`."""
        torch.cuda.current_stream(self.device).wait_event(event)

    def pinned(self, size_bytes: int) -> Tensor:
        """See `Streams`."""
        return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True)


@dataclass(frozen=True)
class _Transfer:
    """What is on its way: the slot that it fills, the event after it, and by note its (source, place, dtype)."""

    slot: Tensor
    event: Event
    entries: list[tuple[Any, list[tuple[Tensor, Tensor, torch.dtype]]]]


class PinnedStager(Stager):
    """Through a ring of `slots` buffers of pinned memory, `slot_bytes` each, that a stream of its own fills.

    What is sent waits until `records_at_once` sendings are together, or one says `at_once`; then one slot takes them
    all. A slot is read, into memory that is the receiver's own, once its event has happened: `completed` looks and does
    not wait. Where all slots are taken, `send` waits for the oldest one and counts it: the host is as many loads ahead
    of the device then, which has work for as long. A load that is larger than a slot gets a larger one, which stays.

    `copy` has one place on the device for each shape and dtype. It is taken again by the next copy, which the training
    stream begins when the one before has left: so device memory is bounded without the host's waiting. `offload` holds
    matrices in pinned memory, and `to_device` moves them to the device for one record. A stager that `keeps_on_device`
    leaves them there, and nothing moves: what was copied last is kept, and the next copy takes the place of `over`.
    """

    has_places = True

    def __init__(
        self,
        streams: Streams,
        *,
        slot_bytes: int,
        slots: int = SLOTS,
        records_at_once: int = RECORDS_AT_ONCE,
        keeps_on_device: bool = False,
    ) -> None:
        self._streams, self._records_at_once, self._keeps_on_device = streams, records_at_once, keeps_on_device
        self._free = [streams.pinned(slot_bytes) for _ in range(slots)]
        self._held: list[tuple[Any, Sequence[StagedTensor]]] = []
        self._flying: deque[_Transfer] = deque()
        self._done: deque[tuple[Any, list[Tensor]]] = deque()
        self._places: dict[tuple[torch.Size, torch.dtype], Tensor] = {}
        self._last: Event | None = None  # after all that has been moved so far

    def copy(self, matrix: Tensor, *, dtype: torch.dtype) -> Tensor:
        """See `Stager`; the cast is the device's."""
        key = matrix.shape, dtype
        if key not in self._places:
            self._places[key] = torch.empty(matrix.shape, dtype=dtype, device=self._streams.device)
        self._hold()
        return self._places[key].copy_(matrix.detach())

    def stage(self, staged: Sequence[StagedTensor], *, note: Any, at_once: bool) -> None:
        """See `Stager`."""
        self._held.append((note, [(tensor.detach(), dtype) for tensor, dtype in staged]))
        if at_once or len(self._held) >= self._records_at_once:
            self._start()

    def completed(self, *, wait: bool = False) -> Iterator[tuple[Any, list[Tensor]]]:
        """See `Stager`."""
        yield from self._landed()  # before the device is asked again: where it has failed, this is what is left
        if wait and self._held:
            self._start()
        while self._flying and (wait or self._flying[0].event.query()):
            self._finish()
            yield from self._landed()

    def offload(self, matrix: Tensor, *, over: Tensor | None = None) -> Tensor:
        """See `Stager`: pinned memory, filled aside, or at once from the host; or a place on the device."""
        if self._keeps_on_device:
            return self._kept_there(matrix, over)
        kept = self._pinned_like(matrix) if over is None else over
        if matrix.device != self._streams.device:
            return kept.copy_(matrix)
        self._last = self._streams.copy_async([(kept, matrix)])
        return kept

    def to_device(self, kept: Tensor) -> Tensor:
        """See `Stager`: a copy on the device, or what is there."""
        if self._keeps_on_device:
            return kept
        self._hold()
        return torch.empty_like(kept, device=self._streams.device).copy_(kept, non_blocking=True)

    def to_host(self, kept: Tensor) -> Tensor:
        """See `Stager`: a copy, since the next `offload` may write into it."""
        if self._keeps_on_device:
            return kept.to("cpu", copy=True)
        if self._last is not None:
            self._last.synchronize()
        return kept.clone()

    def _kept_there(self, matrix: Tensor, over: Tensor | None) -> Tensor:
        """A matrix that stays on the device: its own place where `over` takes that, so that nothing is copied."""
        key = matrix.shape, matrix.dtype
        if over is None or self._places.get(key) is not matrix or over.shape != matrix.shape:
            return matrix.detach().to(self._streams.device, copy=True)
        self._places[key] = over
        return matrix

    def _hold(self) -> None:
        if self._last is not None:
            self._streams.wait_event(self._last)

    def _pinned_like(self, matrix: Tensor) -> Tensor:
        return self._streams.pinned(matrix.nbytes).view(matrix.dtype).view(matrix.shape)

    def _landed(self) -> Iterator[tuple[Any, list[Tensor]]]:
        while self._done:
            yield self._done.popleft()

    # an interrupt may come while these wait or copy: what is held, flying or free changes after that, all at once

    def _start(self) -> None:
        slot = self._next_slot(sum(_room(tensor) for _, staged in self._held for tensor, _ in staged))
        entries, start = [], 0
        for note, staged in self._held:
            placed = []
            for tensor, dtype in staged:
                place = slot[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
                placed.append((tensor, place, dtype))
                start += _room(tensor)
            entries.append((note, placed))
        pairs = [(place, tensor) for _, placed in entries for tensor, place, _ in placed]
        self._last = self._streams.copy_async(pairs)
        self._flying.append(_Transfer(slot, self._last, entries))
        del self._free[0], self._held[:]

    def _next_slot(self, size: int) -> Tensor:
        """The first of the free ones, large enough; it stays among them until a load has it."""
        while self._flying and self._flying[0].event.query():
            self._finish()
        if not self._free:
            self.waits += 1
            self._finish()
        if self._free[0].nbytes < size:
            self._free[0] = self._streams.pinned(size)
        return self._free[0]

    def _finish(self) -> None:
        """Read the oldest load, once it is there, and give its slot back."""
        load = self._flying[0]
        load.event.synchronize()
        landed = [(note, [place.to(dtype, copy=True) for _, place, dtype in placed]) for note, placed in load.entries]
        self._flying.popleft()
        self._done.extend(landed)
        self._free.append(load.slot)


def _room(tensor: Tensor) -> int:
    return -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
