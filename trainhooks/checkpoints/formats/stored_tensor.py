"""A tensor where it lies: the byte ranges that hold it, and how they make it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from trainhooks.checkpoints.base import CheckpointError, TensorEntry
from trainhooks.checkpoints.sources.byte_source import ByteSource, LocalFile

EDGE_BYTES = 1 << 20


@dataclass(frozen=True)
class Part:
    """Bytes [start, stop) of a file, the block of `shape` they hold with `stride` (both in elements; the first byte
    is element [0, ..., 0]), and the block's place in the whole tensor, `offsets`."""

    source: ByteSource
    start: int
    stop: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offsets: tuple[int, ...]

    def read(self, dtype: torch.dtype) -> Tensor:
        """The block, as stored. Shares the memory that was read where its alignment allows."""
        if self.start == self.stop:
            return torch.empty(self.shape, dtype=dtype)
        raw = torch.frombuffer(self.source.read(self.start, self.stop), dtype=torch.uint8)
        if raw.data_ptr() % dtype.itemsize:
            raw = raw.clone()
        return raw.view(dtype).as_strided(self.shape, self.stride)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor's entry, and `locate`, which finds its parts when they are wanted (and may read headers for it)."""

    entry: TensorEntry
    locate: Callable[[], tuple[Part, ...]]

    def read(self) -> Tensor:
        """The tensor in its own dtype, on the CPU, contiguous. Raises CheckpointError where parts leave a hole."""
        parts = self.locate()
        dtype = torch_dtype(self.entry)
        if len(parts) == 1 and parts[0].shape == self.entry.shape:
            return parts[0].read(dtype).contiguous()
        held = sum(math.prod(part.shape) for part in parts)
        if held != math.prod(self.entry.shape):
            raise CheckpointError(
                f"{self.entry.file}: the pieces of {self.entry.key!r} hold {held} numbers; its shape "
                f"{self.entry.shape} needs {math.prod(self.entry.shape)}. A rank's file is missing."
            )
        if _any_overlap(parts):
            raise CheckpointError(f"{self.entry.file}: pieces of {self.entry.key!r} overlap; its metadata is wrong.")
        whole = _empty(self.entry, dtype)
        for part in parts:
            block = whole
            for axis, (at, size) in enumerate(zip(part.offsets, part.shape, strict=True)):
                block = block.narrow(axis, at, size)
            block.copy_(part.read(dtype))
        return whole

    def expect(self) -> None:
        """Have what lies on this machine read ahead, since it will be read soon."""
        for part in self.locate():
            if isinstance(part.source, LocalFile):
                part.source.expect(part.start, part.stop)

    def digest(self, *, full: bool) -> str:
        """SHA-256 (first 32 digits) of dtype, shape and the first and last MiB of each part; `full`: of all values in
        logical order, whatever the layout."""
        hasher = hashlib.sha256(f"{self.entry.dtype}{self.entry.shape}".encode())
        if full:
            # torch lacks a buffer for bfloat16: look at the bytes
            hasher.update(self.read().reshape(-1).view(torch.uint8).numpy().data)
            return hasher.hexdigest()[:32]
        for part in self.locate():
            hasher.update(f"{part.shape}{part.stride}{part.offsets}".encode())
            middle = min(part.stop, part.start + EDGE_BYTES)
            hasher.update(part.source.read(part.start, middle))
            hasher.update(part.source.read(max(middle, part.stop - EDGE_BYTES), part.stop))
        return hasher.hexdigest()[:32]


@dataclass(frozen=True)
class DecodedTensor(StoredTensor):
    """One whose values `decode` makes of what its parts hold: numbers of codes, a shape of flat pieces, an order."""

    decode: Callable[[], Tensor]

    def read(self) -> Tensor:
        """The tensor as decoded, contiguous. Raises CheckpointError."""
        return self.decode().contiguous()

    def digest(self, *, full: bool) -> str:
        """As `StoredTensor`; of all values where there are no parts to look at."""
        return super().digest(full=full or not self.locate())


def reshaped(flat: StoredTensor, entry: TensorEntry) -> DecodedTensor:
    """A tensor whose values lie in a row, as many as its shape holds."""
    return DecodedTensor(entry, flat.locate, lambda: flat.read().view(entry.shape))


def transposed(stored: StoredTensor, *, note: str) -> DecodedTensor:
    """A matrix seen the other way round."""
    entry = replace(stored.entry, shape=stored.entry.shape[::-1], note=joined_notes(stored.entry.note, note))
    return DecodedTensor(entry, stored.locate, lambda: stored.read().T)


def renamed(stored: StoredTensor, **changes: Any) -> StoredTensor:
    """The same tensor with other words in its entry: its `key`, `note`, `alias_of`."""
    return replace(stored, entry=replace(stored.entry, **changes))


def placed(stored: StoredTensor, at: Sequence[int]) -> tuple[Part, ...]:
    """The parts of a piece that begins at `at` in a larger tensor."""
    shifted = []
    for part in stored.locate():
        offsets = tuple(begin + own for begin, own in zip(at, part.offsets, strict=True))
        shifted.append(replace(part, offsets=offsets))
    return tuple(shifted)


def joined_notes(*notes: str) -> str:
    """What there is of several notes, as one."""
    return "; ".join(note for note in notes if note)


def unreadable(key: str, *, what: str, shape: tuple[int, ...], file: str) -> StoredTensor:
    """A tensor that is listed and fails when it is read, saying `what` it is."""

    def refuse() -> tuple[Part, ...]:
        raise CheckpointError(f"{file}: {key!r} is {what}, which is not read. Save it as plain numbers.")

    return StoredTensor(TensorEntry(key, "unknown", shape, file, 0, unreadable=what), refuse)


def _empty(entry: TensorEntry, dtype: torch.dtype) -> Tensor:
    try:
        return torch.empty(entry.shape, dtype=dtype)
    except (RuntimeError, MemoryError) as error:
        raise CheckpointError(
            f"{entry.file}: {entry.key!r} of shape {entry.shape} takes {entry.nbytes} bytes, more than there are."
        ) from error


def _any_overlap(parts: Sequence[Part]) -> bool:
    """Whether two parts share an element. They are swept along the axis that parts them most, so that the thousands
    of pieces of a large run are not all compared with each other."""
    axes = range(len(parts[0].shape) if parts else 0)
    axis = max(axes, key=lambda axis: len({part.offsets[axis] for part in parts}), default=None)
    if axis is None:
        return len(parts) > 1
    open_parts: list[Part] = []
    for part in sorted((part for part in parts if 0 not in part.shape), key=lambda part: part.offsets[axis]):
        open_parts = [one for one in open_parts if one.offsets[axis] + one.shape[axis] > part.offsets[axis]]
        if any(_overlap(one, part) for one in open_parts):
            return True
        open_parts.append(part)
    return False


def _overlap(one: Part, other: Part) -> bool:
    return all(
        max(at, there) < min(at + size, there + length)
        for at, size, there, length in zip(one.offsets, one.shape, other.offsets, other.shape, strict=True)
    )


def torch_dtype(entry: TensorEntry) -> torch.dtype:
    """torch's dtype of that name. Raises CheckpointError where torch has none."""
    dtype = getattr(torch, entry.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"{entry.file}: {entry.key!r} has dtype {entry.dtype}, which torch does not read.")
    return dtype


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in elements, of a contiguous tensor."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
