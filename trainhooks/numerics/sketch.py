"""Linear sign sketches of parameter groups: a few kilobytes that give distances and cosines of any two records."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import count
from math import isqrt
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from trainhooks.numerics.hashing import splitmix64_stream
from trainhooks.numerics.products import exact_products
from trainhooks.numerics.segments import gathered_sums, segment_sums

DEFAULT_SIZE = 1021
SIGN_PERIOD = 1 << 20
ROW_PERIOD = 1 << 16
CHUNK = 1 << 20
DEVICE_CHUNKS = 16
STAGING_BYTES = 4 * (DEVICE_CHUNKS + 2) * CHUNK
"""The buffer on a device, and the signs."""
HOSTS = ("cpu",)
FLOAT32_HOLDS = frozenset({torch.float32, torch.float16, torch.bfloat16})
_TILE = 16
_SIGN_SEED = 0x5BF0_3635
_ROW_SEED = 0x2545_F491

NamedTensors = Sequence[tuple[str, Tensor]]


def standard_error(size: int = DEFAULT_SIZE) -> float:
    """Relative standard error of a norm or distance taken from sketches of `size` buckets: 1/sqrt(2 size)."""
    return float((2 * size) ** -0.5)


@torch.no_grad()
def sketch_parameter(
    values: Float[Tensor, "*shape"], *, name: str, size: int = DEFAULT_SIZE, start: int = 0
) -> Float[Tensor, "sketch"]:
    """`size` sums of plus or minus the elements of one parameter, float32, on its device.

    Element i (row-major in the whole parameter; `values` holds those from `start` on) lies at position
    q = i + o(name) of a grid of `size` columns. Its bucket is its column, its sign a fixed pool's entry at q times
    another pool's entry at its row; both pools are splitmix64's, all offsets are hashed from `name`. So the sketch
    depends on nothing but name, index and value: sketches of disjoint slices add up to that of the whole, and a
    weighted sum of parameters has the weighted sum of their sketches. (The row's sign is needed because a pool alone
    repeats: in a parameter larger than the pool, with a strong mean row, errors add up in step; without it a norm's
    error at 50304 x 768 was 2.4 times the stated one, with it 0.9.)

    E|s|^2 = |values|^2; a norm's relative standard error is `standard_error(size)`, whatever the number of elements.
    A prime `size` spreads each column of any matrix over all buckets. The work is one pass over the values, through a
    buffer (see `_CellSums`). A tensor that is not contiguous is copied first. NaN and inf spoil the buckets they fall
    into.

    Source: count sketch (Charikar, Chen, Farach-Colton 2002); as a projection, Weinberger et al. 2009,
    arXiv 0902.2206, appendix A. Raises ValueError where `size` is not a prime or `start` is negative.
    """
    _check_size(size)
    if start < 0:
        raise ValueError(f"a slice of {name!r} starts at element {start}: pass a global index of 0 or more.")
    sums = _CellSums(1, size=size, device=values.device)
    sums.add(values, name=name, start=start, cell=0)
    return sums.total()[0]


class Sketcher:
    """Sketches parameter groups, each parameter once however many groups hold it.

    `groups` maps a group's name to its (clean parameter name, tensor) pairs; only the names are kept. `size` is the
    number of buckets, a prime.

    Raises ValueError where `size` is not a prime.
    """

    def __init__(self, groups: Mapping[str, NamedTensors], *, size: int = DEFAULT_SIZE) -> None:
        _check_size(size)
        self.size = size
        self.groups = tuple(groups)
        homes: dict[str, list[int]] = {}
        for index, members in enumerate(groups.values()):
            for name in dict.fromkeys(name for name, _ in members):
                homes.setdefault(name, []).append(index)
        # parameters with the same homes share a cell: groups, "whole" among them, are sums of few cells
        cells = {home: index for index, home in enumerate(dict.fromkeys(tuple(home) for home in homes.values()))}
        self._cell_of = {name: cells[tuple(home)] for name, home in homes.items()}
        self._cells_in = [[c for home, c in cells.items() if g in home] for g in range(len(groups))]

    @torch.no_grad()
    def sketch(
        self, groups: Mapping[str, NamedTensors], *, starts: Mapping[str, int] | None = None
    ) -> Float[Tensor, "group sketch"]:
        """One sketch a group, float32, on the device of the first parameter; 0 for a group without parameters.

        `groups` holds the same names as at construction. Where a rank holds only contiguous rows of a parameter,
        `starts` gives, by name, the index of its first element in the whole: the ranks' sketches then add up to that
        of the whole model.

        Raises ValueError where names are missing or unknown.
        """
        tensors, device = self._parameters(groups)
        held = {name: [(starts.get(name, 0) if starts else 0, tensor)] for name, tensor in tensors.items()}
        return self.sketch_slices(held, device=device)

    def _parameters(self, groups: Mapping[str, NamedTensors]) -> tuple[dict[str, Tensor], torch.device]:
        """The parameters by name, and the device of the first."""
        tensors = {name: tensor for members in groups.values() for name, tensor in members}
        if wrong := set(tensors) ^ set(self._cell_of):
            raise ValueError(
                f"the groups hold other parameters than the sketcher was made for: {sorted(wrong)[:4]}. "
                "Make a new Sketcher for them."
            )
        return tensors, next(iter(tensors.values())).device if tensors else torch.device("cpu")

    @torch.no_grad()
    def sketch_and_norms(
        self, groups: Mapping[str, NamedTensors]
    ) -> tuple[Float[Tensor, "group sketch"], Float64[Tensor, "group"] | None]:
        """`sketch`, and each group's exact norm where the same pass gives it: None where it would not be that.

        It gives it on the host, where reading the parameters is what both cost, for types that float32 holds.
        """
        tensors, device = self._parameters(groups)
        sketch, norms = self._sums({name: [(0, tensor)] for name, tensor in tensors.items()}, device=device)
        each_once = len(set(map(id, tensors.values()))) == len(tensors)
        held = all(tensor.dtype in FLOAT32_HOLDS for tensor in tensors.values())
        return sketch, norms if each_once and held else None

    @torch.no_grad()
    def sketch_slices(
        self, slices: Mapping[str, Iterable[tuple[int, Tensor]]], *, device: torch.device
    ) -> Float[Tensor, "group sketch"]:
        """As `sketch`, of what a rank holds: by parameter name, runs of elements with the index of their first one."""
        return self._sums(slices, device=device)[0]

    def _sums(
        self, slices: Mapping[str, Iterable[tuple[int, Tensor]]], *, device: torch.device
    ) -> tuple[Tensor, Tensor | None]:
        """The sketches, and the norms of what was added, where all of it lay on the host."""
        cells = 1 + max(self._cell_of.values(), default=-1)
        here = _CellSums(cells, size=self.size, device=device)
        by_device = {device: here}
        # cell by cell, so that a buffer holds few; runs are made when they are read
        for name in sorted(slices, key=self._cell_of.__getitem__):
            for start, values in slices[name]:
                if values.device not in by_device:
                    by_device[values.device] = _CellSums(cells, size=self.size, device=values.device)
                by_device[values.device].add(values, name=name, start=start, cell=self._cell_of[name])
        total = here.total()
        for sums in by_device.values():
            total = total if sums is here else total + sums.total().to(device)
        squares = here.squares if len(by_device) == 1 else None
        norms = None if squares is None else gathered_sums(squares, self._cells_in).sqrt()
        return gathered_sums(total, self._cells_in), norms


class _Run(NamedTuple):
    """Elements that follow each other in a parameter: where they begin in the buffer and among the signs."""

    values: Float[Tensor, "element"]
    begin: int
    first_sign: int


class _CellSums:
    """Sketches by cell, of runs of parameters that are added cell by cell, in few operations however many they are.

    Runs wait until a buffer's rows are full, of `size` columns each; then all are copied into it, each from a row of
    its own on, multiplied by their signs, and the rows of each cell added up. The buffer has 4 MB on the host, which
    stay in a cache, and up to 64 MB on a device, where what counts is the number of operations. A cell's rows are added
    `_TILE` at a time first, as products with the signs of the rows: many short sums keep a device busy where few long
    ones do not, and round no more than one long sum. On the host `squares` adds up the squares of each cell.
    """

    def __init__(self, cells: int, *, size: int, device: torch.device) -> None:
        self._size, self._device = size, device
        self._on_host = device.type in HOSTS
        self._most_rows = _chunk_rows(size) * (1 if self._on_host else DEVICE_CHUNKS)
        self._flushed: list[Tensor] = []  # the sums of each buffer's cells
        self._flushes_of = [0] * cells
        self.squares = torch.zeros(cells, dtype=torch.float64, device=device) if self._on_host else None
        self._grid = torch.empty(0, dtype=torch.float32, device=device)
        self._runs: list[_Run] = []
        self._signed: list[tuple[int, int, int]] = []  # first row sign, rows, cell
        self._rows = 0

    def add(self, values: Float[Tensor, "*shape"], *, name: str, start: int, cell: int) -> None:
        """Add a run of elements from `start` on; a cell's runs come one after the other."""
        flat = values.detach().reshape(-1)
        origin, sign_shift, row_shift = _offsets(name, self._size)
        begin, end = origin + start, origin + start + flat.numel()
        row, last = begin // self._size, -(-end // self._size)
        while flat.numel() and row < last:
            self._make_room(cell)
            stop = min(last, row + self._most_rows - self._rows, row + _chunk_rows(self._size))
            low, high = max(row * self._size, begin), min(stop * self._size, end)
            place = (self._rows - row) * self._size + low
            self._runs.append(_Run(flat[low - begin : high - begin], place, (low + sign_shift) % SIGN_PERIOD))
            self._signed.append(((row + row_shift) % ROW_PERIOD, stop - row, cell))
            self._rows += stop - row
            row = stop

    def total(self) -> Float[Tensor, "cell sketch"]:
        """The sums of all that was added."""
        self._flush()
        flushed = torch.cat([self._grid.new_empty(0, self._size), *self._flushed])
        return segment_sums(flushed, tuple(self._flushes_of))

    def _make_room(self, cell: int) -> None:
        """At least one free row, in a tile that no other cell has begun."""
        if self._signed and self._signed[-1][2] != cell:
            self._end_tile()
        if self._rows >= self._most_rows:
            self._flush()

    def _end_tile(self) -> None:
        if gap := -self._rows % _TILE:
            self._signed.append((0, gap, self._signed[-1][2]))
            self._rows += gap

    def _flush(self) -> None:
        if not self._runs:
            return
        self._end_tile()
        count = self._rows * self._size
        if self._grid.numel() < count:
            self._grid = torch.empty(count, dtype=torch.float32, device=self._device)
        self._fill(self._grid[:count])
        plan = _row_plan(tuple(self._signed), self._size, self._device)
        cells = slice(plan.first_cell, plan.first_cell + len(plan.tiles))
        rows = self._grid[:count].view(-1, _TILE, self._size)
        with exact_products(self._device.type):
            tiles = torch.bmm(plan.signs.view(-1, 1, _TILE), rows).squeeze(1)
        if self.squares is not None:
            norms = torch.linalg.vector_norm(rows.view(-1, self._size), dim=1).double()
            self.squares[cells] += segment_sums(norms.square_().view(-1, _TILE).sum(1), plan.tiles)
        self._flushed.append(segment_sums(tiles, plan.tiles))
        for cell in range(cells.start, cells.stop):
            self._flushes_of[cell] += 1
        self._runs, self._signed, self._rows = [], [], 0

    def _fill(self, grid: Tensor) -> None:
        """The runs times their signs, and zeros between them."""
        signs, _ = _pools(self._device, self._size)
        runs = self._runs
        pools = [signs[run.first_sign : run.first_sign + run.values.numel()] for run in runs]
        places = [grid[run.begin : run.begin + run.values.numel()] for run in runs]
        if self._on_host:  # a list is no kernel there: one pass, and zeros only where there is no run
            ends = [0, *(run.begin + run.values.numel() for run in runs)]
            for end, begin in zip(ends, [*(run.begin for run in runs), len(grid)], strict=True):
                if end < begin:
                    grid[end:begin].zero_()
            for run, pool, place in zip(runs, pools, places, strict=True):
                torch.mul(run.values, pool, out=place)
            return
        grid.zero_()
        for dtype in {run.values.dtype for run in runs}:  # the kernel over lists takes one at a time
            of_dtype = [i for i, run in enumerate(runs) if run.values.dtype == dtype]
            torch._foreach_copy_([places[i] for i in of_dtype], [runs[i].values for i in of_dtype])
        torch._foreach_mul_(places, pools)


class _RowPlan(NamedTuple):
    """What a buffer's rows are: their signs, and the number of tiles of each cell from `first_cell` on."""

    signs: Float[Tensor, "tile row 1"]
    first_cell: int
    tiles: tuple[int, ...]


@lru_cache(maxsize=1 << 12)
def _row_plan(signed: tuple[tuple[int, int, int], ...], size: int, device: torch.device) -> _RowPlan:
    """The plan of rows given as (first row sign, rows, cell)."""
    _, pool = _pools(device, size)
    with torch.inference_mode(False):
        parts = [pool[sign : sign + rows] for sign, rows, _ in signed]
        signs = parts[0] if len(parts) == 1 else torch.cat(parts)
    first, last = signed[0][2], signed[-1][2]
    of_cell = [0] * (last - first + 1)
    for _, rows, cell in signed:
        of_cell[cell - first] += rows
    return _RowPlan(signs.view(-1, _TILE, 1), first, tuple(rows // _TILE for rows in of_cell))


def distance(a: Float[Tensor, "*#batch sketch"], b: Float[Tensor, "*#batch sketch"]) -> Float[Tensor, "*batch"]:
    """Estimated Euclidean distance of what `a` and `b` are sketches of; relative error `standard_error(size)`.

    Exactly 0 for equal sketches. float32 sketches carry a rounding error of about 1e-7 of the norm, so relative
    distances below 1e-6 are rounding.
    """
    distance: Tensor = torch.linalg.vector_norm(a - b, dim=-1)
    return distance


def cosine(a: Float[Tensor, "*#batch sketch"], b: Float[Tensor, "*#batch sketch"]) -> Float[Tensor, "*batch"]:
    """Estimated cosine, in [-1, 1], of what `a` and `b` are sketches of; standard error (1 - cos^2)/sqrt(size).

    NaN where either is zero.
    """
    unit_a = a / torch.linalg.vector_norm(a, dim=-1, keepdim=True)
    unit_b = b / torch.linalg.vector_norm(b, dim=-1, keepdim=True)
    cosine: Tensor = (unit_a * unit_b).sum(dim=-1).clamp(-1.0, 1.0)
    return cosine


def _chunk_rows(size: int) -> int:
    return max(1, CHUNK // size)


@lru_cache(maxsize=16)
def _pools(device: torch.device, size: int) -> tuple[Tensor, Tensor]:
    """Element signs [period + chunk] and row signs [period + chunk rows, 1]: any chunk is one slice."""
    rows = _chunk_rows(size)
    # normal tensors even when first asked for under inference_mode: they are kept
    with torch.inference_mode(False):
        elements = _signs(_SIGN_SEED, SIGN_PERIOD)[torch.arange(SIGN_PERIOD + rows * size) % SIGN_PERIOD]
        of_rows = _signs(_ROW_SEED, ROW_PERIOD)[torch.arange(ROW_PERIOD + rows) % ROW_PERIOD]
        return elements.to(device), of_rows.unsqueeze(1).to(device)


@lru_cache(maxsize=2)
def _signs(seed: int, period: int) -> Tensor:
    positive = splitmix64_stream(seed, length=period) >= 0
    return positive.to(torch.float32).mul_(2).sub_(1)


@lru_cache(maxsize=1 << 16)
def _offsets(name: str, size: int) -> tuple[int, int, int]:
    digest = hashlib.blake2b(name.encode(), digest_size=24).digest()
    column, sign, row = (int.from_bytes(digest[i : i + 8], "little") for i in (0, 8, 16))
    return column % size, sign % SIGN_PERIOD, row % ROW_PERIOD


@lru_cache(maxsize=64)
def _check_size(size: int) -> None:
    if _is_prime(size):
        return
    nearest = next(n for gap in count() for n in (size - gap, max(size, 0) + gap) if _is_prime(n))
    raise ValueError(
        f"a sketch of {size} buckets: the number must be a prime, so that no column of a matrix falls into few "
        f"buckets. Pass {nearest}, the nearest one."
    )


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % factor for factor in range(2, isqrt(n) + 1))
