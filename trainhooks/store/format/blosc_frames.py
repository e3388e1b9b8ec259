"""Frames of blosc 1 by their blocks. Each is compressed by itself, so what stays is taken over as it lies.

A frame is a header of 16 bytes (versions, flags and item size in four; then the frame's raw bytes, a block's raw bytes
and the frame's own bytes, little-endian uint32), where each block begins (uint32), and the blocks: a length (int32) and
so many bytes of the codec.

Source: c-blosc 1, README_CHUNK_FORMAT.rst.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numcodecs import Blosc  # type: ignore[import-untyped]

_HEADER = struct.Struct("<4sIII")
_LENGTH = struct.Struct("<i")
_PLACES = np.dtype("<u4")
_ITEM_SIZE, _SHUFFLED_BYTES = 3, 16  # a byte of the header; the bits of 8 items of 2 bytes are shuffled together
_FLAGS, _STORED_FLAG, _WHOLE_BLOCKS_FLAG = 2, 0x2, 0x10  # a byte of the header, and bits in it
_LARGEST = (1 << 31) - 1
_SMALLEST_BLOCK = 128  # raw bytes: blosc makes a smaller one of a smaller whole alone


@dataclass(frozen=True)
class Frame:
    """A frame taken apart: `head`, its first four bytes; raw bytes of the whole and of a block; the blocks as they lie.

    The last block may be a shorter one.
    """

    head: bytes
    size: int
    block_size: int
    blocks: Sequence[bytes | memoryview]

    @staticmethod
    def parse(data: bytes) -> Frame | None:
        """The blocks of a frame; None where it has none that stand for themselves: stored as it is, or split up, or in
        smaller ones than blosc makes.

        Raises ValueError where it is no whole frame.
        """
        if len(data) < _HEADER.size:
            raise ValueError(f"a frame of {len(data)} bytes has no header")
        head, size, block_size, length = _HEADER.unpack_from(data)
        if head[_FLAGS] & (_STORED_FLAG | _WHOLE_BLOCKS_FLAG) != _WHOLE_BLOCKS_FLAG:
            return None
        if length != len(data) or not 0 < block_size <= size:
            raise ValueError(f"a frame of {len(data)} bytes says {length}, in blocks of {block_size} of {size}")
        if block_size < min(size, _SMALLEST_BLOCK):
            return None
        count = -(-size // block_size)
        if _HEADER.size + _PLACES.itemsize * count > len(data):
            raise ValueError(f"a frame of {len(data)} bytes has no room for {count} blocks")
        view = memoryview(data)
        places = np.frombuffer(data, _PLACES, count=count, offset=_HEADER.size).tolist()
        return Frame(head, size, block_size, [_block(view, place, block_size) for place in places])

    def alone(self, number: int) -> bytes:
        """A frame of one of the blocks."""
        size = min(self.block_size, self.size - number * self.block_size)
        return Frame(self.head, size, size, self.blocks[number : number + 1]).join()

    def join(self) -> bytes:
        """The frame's bytes. Raises ValueError where they are more than a frame can count."""
        places = np.empty(len(self.blocks), dtype=np.int64)
        lengths = [len(block) for block in self.blocks]
        start = _HEADER.size + _PLACES.itemsize * len(self.blocks)
        places[0], places[1:] = start, start + np.cumsum(lengths[:-1])
        total = start + sum(lengths)
        if max(total, self.size) > _LARGEST:
            raise ValueError(f"{total} bytes are more than a frame can have")
        header = _HEADER.pack(self.head, self.size, self.block_size, total)
        return b"".join([header, places.astype(_PLACES).tobytes(), *self.blocks])


def _block(view: memoryview, place: int, most: int) -> memoryview:
    start = place + _LENGTH.size
    if start > len(view):
        raise ValueError(f"a block at {place} lies outside its frame")
    stop = start + _LENGTH.unpack_from(view, place)[0]
    # none is longer than it was raw: blocks that share their bytes would join into far more than was read
    if not start < stop <= min(len(view), start + most):
        raise ValueError(f"a block at {place} ends at {stop}, outside its frame or behind {most} bytes")
    return view[place:stop]


def widened(data: bytes) -> bytes | None:
    """A frame of 16-bit items as one of 32-bit items, of which they are the upper halves and the lower ones are zero.

    A shuffle puts the bytes, or bits, of one place side by side. So zeros are the first half of each block and what the
    frame has is the second, and a codec's frames in a row decode to what they hold in a row (RFC 8878, 3.1). None where
    blocks are stored as they are, or the shuffle leaves some items out.
    """
    frame = Frame.parse(data)
    if (
        frame is None
        or frame.head[_ITEM_SIZE] != 2
        or frame.block_size % _SHUFFLED_BYTES
        or frame.size % _SHUFFLED_BYTES
    ):
        return None
    blocks = []
    for number, block in enumerate(frame.blocks):
        size = min(frame.block_size, frame.size - number * frame.block_size)
        length, zeros = len(block) - _LENGTH.size, compressed_zeros(size)
        if length >= size or zeros is None:
            return None
        blocks.append(b"".join([_LENGTH.pack(len(zeros) + length), zeros, block[_LENGTH.size :]]))
    head = frame.head[:_ITEM_SIZE] + bytes([4])
    return Frame(head, 2 * frame.size, 2 * frame.block_size, blocks).join()


@cache
def compressed_zeros(size: int) -> bytes | None:
    """So many zero bytes by zstd; None where they are too few to be compressed."""
    frame = Frame.parse(Blosc(cname="zstd", clevel=1, shuffle=Blosc.NOSHUFFLE, blocksize=size).encode(bytes(size)))
    return None if frame is None else bytes(frame.blocks[0][_LENGTH.size :])


def replaced_from(
    data: bytes, codec: Blosc, values: np.ndarray, *, start: int, items: int, missing: float | int
) -> bytes | None:
    """A frame of `items`: `values` from item `start` on and `missing` behind them, blocks before them as they were.

    The bytes are those that `codec` makes of the whole: it is given the blocks that change, and one of missing values
    for all of its kind. None where the frame is one block, cannot be taken apart, or is of another codec or size.

    Raises ValueError and RuntimeError where the frame is damaged.
    """
    frame = Frame.parse(data)
    item = values.dtype.itemsize
    if frame is None or len(frame.blocks) == 1 or frame.block_size % item or frame.size != items * item:
        return None
    per_block = frame.block_size // item
    first, changed, whole = start // per_block, -(-(start + values.size) // per_block), items // per_block
    before, rest = start - first * per_block, items % per_block if changed <= whole else 0
    repeated = max(0, whole - changed)
    height = min(changed * per_block, items) - first * per_block
    content = np.full(height + bool(repeated) * per_block + rest, missing, dtype=values.dtype)
    if before:
        content[:before] = np.frombuffer(codec.decode(frame.alone(first)), values.dtype)[:before]
    content[before : before + values.size] = values.reshape(-1)
    codec = Blosc(codec.cname, codec.clevel, codec.shuffle, blocksize=frame.block_size)
    fresh = Frame.parse(codec.encode(content))
    if fresh is None or fresh.head != frame.head:
        return None
    blocks = list(fresh.blocks)
    blocks[changed - first : changed - first + bool(repeated)] *= repeated
    return replace(frame, blocks=[*frame.blocks[:first], *blocks]).join()
