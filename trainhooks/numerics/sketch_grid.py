"""Where a sketch puts a parameter's elements: their rows and columns of a grid, and the signs of both."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from trainhooks.numerics.hashing import splitmix64_stream

SIGN_PERIOD = 1 << 20
ROW_PERIOD = 1 << 16
CHUNK = 1 << 20
"""Elements of the longest run."""
TILE = 16
"""Rows that are added up first: many short sums keep a device busy where few long ones do not, and round less."""
_SIGN_SEED = 0x5BF0_3635
_ROW_SEED = 0x2545_F491


class Run(NamedTuple):
    """Elements `low` ... `high` of a parameter's part, which lie in some whole `rows` of the grid.

    The first has `begin` elements of these rows before it. `sign` is its sign's place in the pool of signs, `row_sign`
    that of the first row's.
    """

    low: int
    high: int
    begin: int
    rows: int
    sign: int
    row_sign: int


class RowSpan(NamedTuple):
    """Rows that follow each other in a buffer and belong to one cell; `row_sign` is the place of the first one's."""

    cell: int
    rows: int
    row_sign: int


def runs(name: str, *, start: int, count: int, size: int, free_rows: Callable[[], int]) -> Iterator[Run]:
    """The elements of `start` ... `start + count` of a parameter as runs of rows, `size` columns each.

    No run has more rows than `free_rows` gives just before it.
    """
    origin, sign_shift, row_shift = _offsets(name, size)
    first, end = origin + start, origin + start + count
    row, last = first // size, -(-end // size)
    while count and row < last:
        stop = min(last, row + min(free_rows(), chunk_rows(size)))
        low, high = max(row * size, first), min(stop * size, end)
        sign, row_sign = (low + sign_shift) % SIGN_PERIOD, (row + row_shift) % ROW_PERIOD
        yield Run(low - first, high - first, low - row * size, stop - row, sign, row_sign)
        row = stop


def tile_gap(spans: Sequence[RowSpan]) -> list[RowSpan]:
    """What fills the last tile up: a span of the last cell, or nothing."""
    gap = -sum(span.rows for span in spans) % TILE
    return [RowSpan(spans[-1].cell, gap, 0)] if gap else []


def tiles_by_cell(spans: Sequence[RowSpan]) -> tuple[slice, tuple[int, ...]]:
    """The cells of these spans from the first to the last, and how many tiles each of them has."""
    first, last = spans[0].cell, spans[-1].cell
    rows = [0] * (last - first + 1)
    for span in spans:
        rows[span.cell - first] += span.rows
    return slice(first, last + 1), tuple(count // TILE for count in rows)


@lru_cache(maxsize=1 << 12)
def joined_signs(spans: tuple[RowSpan, ...], size: int, device: torch.device) -> Float[Tensor, "row"]:
    """The signs of the rows of all spans, one after the other."""
    pool = sign_pools(device, size)[1]
    with torch.inference_mode(False):
        parts = [pool[span.row_sign : span.row_sign + span.rows] for span in spans]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def chunk_rows(size: int) -> int:
    """Rows of the longest run."""
    return max(1, CHUNK // size)


@lru_cache(maxsize=16)
def sign_pools(device: torch.device, size: int) -> tuple[Tensor, Tensor]:
    """Element signs [period + chunk] and row signs [period + chunk rows]: any run has one slice of each."""
    rows = chunk_rows(size)
    # normal tensors even when first asked for under inference_mode: they are kept
    with torch.inference_mode(False):
        elements = _signs(_SIGN_SEED, SIGN_PERIOD)[torch.arange(SIGN_PERIOD + rows * size) % SIGN_PERIOD]
        of_rows = _signs(_ROW_SEED, ROW_PERIOD)[torch.arange(ROW_PERIOD + rows) % ROW_PERIOD]
        return elements.to(device), of_rows.to(device)


@lru_cache(maxsize=2)
def _signs(seed: int, period: int) -> Tensor:
    positive = splitmix64_stream(seed, length=period) >= 0
    return positive.to(torch.float32).mul_(2).sub_(1)


@lru_cache(maxsize=1 << 16)
def _offsets(name: str, size: int) -> tuple[int, int, int]:
    digest = hashlib.blake2b(name.encode(), digest_size=24).digest()
    column, sign, row = (int.from_bytes(digest[i : i + 8], "little") for i in (0, 8, 16))
    return column % size, sign % SIGN_PERIOD, row % ROW_PERIOD
