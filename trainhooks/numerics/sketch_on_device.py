"""The sums of sketches on a device: long lists of runs, in few operations."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from trainhooks.numerics.products import exact_products
from trainhooks.numerics.segments import segment_sums
from trainhooks.numerics.sketch_grid import (
    CHUNK,
    TILE,
    RowSpan,
    Run,
    chunk_rows,
    joined_signs,
    runs,
    sign_pools,
    tile_gap,
    tiles_by_cell,
)

DEVICE_CHUNKS = 16
STAGING_BYTES = 4 * (DEVICE_CHUNKS + 2) * CHUNK
"""The buffer, and the signs."""


class DeviceSums:
    """Sketches by cell, of runs of parameters that are added cell by cell, in few operations however many they are.

    Runs wait until a buffer's rows are full, 64 MB; then all are copied into it, each from a row of its own on,
    multiplied by their signs, and the rows of each cell added up, a tile at a time first, as products with the signs of
    the rows.
    """

    def __init__(self, cells: int, *, size: int, device: torch.device) -> None:
        self._size, self._device = size, device
        self._most_rows = DEVICE_CHUNKS * chunk_rows(size)
        self._flushed: list[Tensor] = []  # the sums of each buffer's cells
        self._flushes_of = [0] * cells
        self._grid = torch.empty(0, dtype=torch.float32, device=device)
        self._runs: list[tuple[Tensor, int, Run]] = []  # values, and where in the grid their rows begin
        self._spans: list[RowSpan] = []
        self._rows = 0

    def add(self, values: Float[Tensor, "*shape"], *, name: str, start: int, cell: int) -> None:
        """Add a run of elements from `start` on; a cell's runs come one after the other."""
        flat = values.detach().reshape(-1)

        def free_rows() -> int:
            if self._spans and self._spans[-1].cell != cell:
                self._end_tile()
            if self._rows >= self._most_rows:
                self._flush()
            return self._most_rows - self._rows

        for run in runs(name, start=start, count=flat.numel(), size=self._size, free_rows=free_rows):
            self._runs.append((flat[run.low : run.high], self._rows * self._size + run.begin, run))
            self._spans.append(RowSpan(cell, run.rows, run.row_sign))
            self._rows += run.rows

    def total(self) -> Float[Tensor, "cell sketch"]:
        """The sums of all that was added."""
        self._flush()
        flushed = torch.cat([self._grid.new_empty(0, self._size), *self._flushed])
        return segment_sums(flushed, tuple(self._flushes_of))

    def _end_tile(self) -> None:
        gap = tile_gap(self._spans)
        self._spans += gap
        self._rows += sum(span.rows for span in gap)

    def _flush(self) -> None:
        if not self._runs:
            return
        self._end_tile()
        count = self._rows * self._size
        if self._grid.numel() < count:
            self._grid = torch.empty(count, dtype=torch.float32, device=self._device)
        self._fill(self._grid[:count])
        signs = joined_signs(tuple(self._spans), self._size, self._device).view(-1, 1, TILE)
        with exact_products(self._device.type):
            tiles = torch.bmm(signs, self._grid[:count].view(-1, TILE, self._size)).squeeze(1)
        cells, lengths = tiles_by_cell(self._spans)
        self._flushed.append(segment_sums(tiles, lengths))
        for cell in range(cells.start, cells.stop):
            self._flushes_of[cell] += 1
        self._runs, self._spans, self._rows = [], [], 0

    def _fill(self, grid: Tensor) -> None:
        """The runs times their signs, and zeros between them."""
        pool, _ = sign_pools(self._device, self._size)
        values = [part for part, _, _ in self._runs]
        signs = [pool[run.sign : run.sign + len(part)] for part, _, run in self._runs]
        places = [grid[begin : begin + len(part)] for part, begin, _ in self._runs]
        grid.zero_()
        for dtype in {part.dtype for part in values}:  # the kernel over lists takes one at a time
            of_dtype = [i for i, part in enumerate(values) if part.dtype == dtype]
            torch._foreach_copy_([places[i] for i in of_dtype], [values[i] for i in of_dtype])
        torch._foreach_mul_(places, signs)
