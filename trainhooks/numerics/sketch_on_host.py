"""The sums of sketches on the host: in blocks that stay in a core's cache, by steps that can be taken again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from trainhooks.numerics.segments import segment_sums
from trainhooks.numerics.sketch_grid import (
    CHUNK,
    TILE,
    RowSpan,
    joined_signs,
    runs,
    sign_pools,
    tile_gap,
    tiles_by_cell,
)

HOST = torch.device("cpu")
BLOCK = 1 << 17
"""Elements that a core's cache holds while they are signed, summed and squared."""
WAITING = 1 << 18
"""Elements of the tiles that wait to be added up."""
KEPT_ROOMS = 2


class Views(NamedTuple):
    """A block of some tiles as it is read, and where its sums go."""

    rows: Float[Tensor, "row size"]
    tiles: Float[Tensor, "tile row size"]
    sums: Float[Tensor, "tile 1 size"]
    norms: Float[Tensor, "row"]


class Room:
    """The memory that sums are made in, 1.5 MB at the usual size and one thread.

    It is used again: fresh memory costs the system as much time as the work in it.
    """

    _free: ClassVar[list[Room]] = []

    def __init__(self, size: int) -> None:
        self.size, self.block_tiles = size, _block_tiles(size)
        self.most_tiles = _power_of_two(WAITING // size)
        with torch.inference_mode(False):
            self.block = torch.empty(self.block_tiles * TILE * size, device=HOST, dtype=torch.float32)
            self.tiles = torch.empty(self.most_tiles, size, device=HOST, dtype=torch.float32)
            self.norms = torch.empty(self.most_tiles * TILE, device=HOST, dtype=torch.float32)
        self._views: dict[tuple[int, int], Views] = {}

    @classmethod
    def take(cls, size: int) -> Room:
        """One that nobody works in."""
        try:
            room = cls._free.pop()  # one step: other threads take theirs here too
        except IndexError:
            return cls(size)
        return room if (room.size, room.block_tiles) == (size, _block_tiles(size)) else cls(size)

    def views(self, count: int, *, done: int) -> Views:
        """Of the block's first `count` tiles, whose sums go behind those of `done` others."""
        if (count, done) not in self._views:
            rows = self.block[: count * TILE * self.size].view(-1, self.size)
            sums = self.tiles[done : done + count].unsqueeze(1)
            norms = self.norms[done * TILE : (done + count) * TILE]
            self._views[count, done] = Views(rows, rows.view(count, TILE, self.size), sums, norms)
        return self._views[count, done]

    def give_back(self) -> None:
        """Nobody works in it any more."""
        if len(self._free) < KEPT_ROOMS:
            self._free.append(self)


class Block(NamedTuple):
    """How a block that is filled becomes sums of tiles and norms of rows; what lies behind its last run is a `gap`.

    `cells` and `lengths` say of all tiles that wait whose they are, where they are to be added up after this block.
    """

    gap: Tensor | None
    views: Views
    signs: Float[Tensor, "tile 1 row"]
    cells: slice | None
    lengths: tuple[int, ...]


class Step(NamedTuple):
    """One run: the block that ends before it, then zeros between the last run and this one, then values times signs."""

    ended: Block | None
    gap: Tensor | None
    signs: Float[Tensor, "element"]
    place: Float[Tensor, "element"]


class Planner:
    """Lays runs into a room's blocks, without a look at their values: the same parts give the same steps."""

    def __init__(self, room: Room) -> None:
        self._room, self._size = room, room.size
        self._signs = sign_pools(HOST, room.size)[0]
        self._rows = self._filled = 0  # of the block; elements of it
        self._done = 0  # tiles of the blocks before
        self._of_block: list[RowSpan] = []
        self._of_tiles: list[RowSpan] = []
        self._ended: Block | None = None

    def place(self, name: str, *, start: int, count: int, cell: int) -> tuple[list[int], list[Step]]:
        """The steps for elements from `start` on of a parameter, and how many elements each takes."""
        steps, sizes, size, block = [], [], self._size, self._room.block

        def free_rows() -> int:
            if self._of_block and self._of_block[-1].cell != cell:
                self._end_tile()
            most = self._room.block_tiles * TILE
            if self._rows == most:
                self._ended = self.end_block()
            return most - self._rows

        for run in runs(name, start=start, count=count, size=size, free_rows=free_rows):
            begin, length = self._rows * size + run.begin, run.high - run.low
            signs = self._signs[run.sign : run.sign + length]
            gap = self._gap(begin)
            place = block if length == block.numel() else block[begin : begin + length]
            steps.append(Step(self._ended, gap, signs, place))
            sizes.append(length)
            self._of_block.append(RowSpan(cell, run.rows, run.row_sign))
            self._rows, self._filled, self._ended = self._rows + run.rows, begin + length, None
        return sizes, steps

    def end_block(self, *, last: bool = False) -> Block | None:
        """The block as far as it is filled; after the `last` one tiles are added up. None where there is nothing."""
        if not self._rows:
            return None
        self._end_tile()
        count = self._rows // TILE
        signs = joined_signs(tuple(self._of_block), self._size, HOST).view(count, 1, TILE)
        gap, views = self._gap(self._rows * self._size), self._room.views(count, done=self._done)
        self._of_tiles += self._of_block
        self._done += count
        self._rows = self._filled = 0
        self._of_block = []
        cells: slice | None = None
        lengths: tuple[int, ...] = ()
        if last or self._done + self._room.block_tiles > self._room.most_tiles:
            cells, lengths = tiles_by_cell(self._of_tiles)
            self._of_tiles, self._done = [], 0
        return Block(gap, views, signs, cells, lengths)

    def _gap(self, begin: int) -> Tensor | None:
        """What is between the last run and `begin`."""
        return self._room.block[self._filled : begin] if self._filled < begin else None

    def _end_tile(self) -> None:
        gap = tile_gap(self._of_block)
        self._of_block += gap
        self._rows += sum(span.rows for span in gap)


class HostSums:
    """Sketches by cell, of runs of parameters that are added cell by cell.

    Each run lies in rows of its own; the rows of a tile are added up in a product with their signs, which rounds no
    more than one long sum, and no tile has rows of two cells. The sums do not depend on the number of threads. Float32
    products must be exact around it (see `exact_products`).
    """

    def __init__(self, cells: int, *, size: int) -> None:
        self._room = Room.take(size)
        self._planner = Planner(self._room)
        self._sums = _Sums(cells, self._room, squared=False)

    def add(self, values: Float[Tensor, "*shape"], *, name: str, start: int, cell: int) -> None:
        """Add a run of elements from `start` on; a cell's runs come one after the other."""
        flat = values.detach().reshape(-1)
        self._sums.take(flat, *self._planner.place(name, start=start, count=flat.numel(), cell=cell))

    def total(self) -> Float[Tensor, "cell sketch"]:
        """The sums of all that was added; nothing can be added any more."""
        self._sums.end(self._planner.end_block(last=True))
        self._room.give_back()
        return self._sums.total


class HostPass:
    """The same for parameters whose names and sizes stay what they are: planned once, made again for each record.

    `parts` are name, number of elements and cell of each, cell by cell. Beside the room, which is its own, a plan takes
    2.6 kB a parameter and 1 kB for each 130,000 elements.
    """

    def __init__(self, parts: Sequence[tuple[str, int, int]], *, cells: int, size: int) -> None:
        self._cells, self._room = cells, Room(size)
        planner = Planner(self._room)
        with torch.inference_mode(False):
            self._parts = [planner.place(name, start=0, count=count, cell=cell) for name, count, cell in parts]
            self._last = planner.end_block(last=True)

    def sums(self, tensors: Iterable[Tensor]) -> tuple[Float[Tensor, "cell sketch"], Float64[Tensor, "cell"]]:
        """The sketches and the squares of all elements, by cell, of the parameters as they are now."""
        sums = _Sums(self._cells, self._room, squared=True)
        for tensor, (sizes, steps) in zip(tensors, self._parts, strict=True):
            sums.take(tensor.detach().reshape(-1), sizes, steps)
        sums.end(self._last)
        return sums.total, sums.squares


class _Sums:
    """What steps add up to; `squares` of all elements where it is `squared`."""

    def __init__(self, cells: int, room: Room, *, squared: bool) -> None:
        self._room, self._squared = room, squared
        self.total = torch.zeros(cells, room.size, device=HOST, dtype=torch.float32)
        self.squares = torch.zeros(cells, dtype=torch.float64, device=HOST)

    def take(self, flat: Float[Tensor, "element"], sizes: Sequence[int], steps: Sequence[Step]) -> None:
        """Take the steps for these elements."""
        is_float32 = flat.dtype == torch.float32
        for values, step in zip(flat.split_with_sizes(sizes) if sizes else (), steps, strict=True):
            if step.ended is not None:
                self.end(step.ended)
            if step.gap is not None:
                step.gap.zero_()
            if is_float32:
                torch.mul(values, step.signs, out=step.place)
            else:  # the kernel of two types is slower than both steps
                step.place.copy_(values).mul_(step.signs)

    def end(self, block: Block | None) -> None:
        """Make sums of a block that is filled; None is one without rows."""
        if block is None:
            return
        if block.gap is not None:
            block.gap.zero_()
        torch.bmm(block.signs, block.views.tiles, out=block.views.sums)
        if self._squared:
            torch.linalg.vector_norm(block.views.rows, dim=1, out=block.views.norms)
        if block.cells is None:
            return
        count = sum(block.lengths)
        self.total[block.cells] += segment_sums(self._room.tiles[:count], block.lengths)
        if self._squared:
            squares = self._room.norms[: TILE * count].double().square_().view(-1, TILE).sum(1)
            self.squares[block.cells] += segment_sums(squares, block.lengths)


def _block_tiles(size: int) -> int:
    """Tiles of a block: more threads take a larger one, each a part of it."""
    at_once = min(CHUNK, BLOCK * torch.get_num_threads())
    return min(_power_of_two(at_once // (TILE * size)), _power_of_two(WAITING // size))


def _power_of_two(most: int) -> int:
    """The largest power of two up to `most`, 1 at least: so blocks of any length end where tiles are added up."""
    return 1 << max(0, most.bit_length() - 1)
