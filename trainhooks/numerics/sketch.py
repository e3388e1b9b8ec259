"""Linear sign sketches of parameter groups: a few kilobytes that give distances and cosines of any two records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import count
from math import isqrt

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from trainhooks.numerics.products import exact_products
from trainhooks.numerics.segments import gathered_sums
from trainhooks.numerics.sketch_on_device import DeviceSums
from trainhooks.numerics.sketch_on_host import HostPass, HostSums

DEFAULT_SIZE = 1021
FLOAT32_HOLDS = frozenset({torch.float32, torch.float16, torch.bfloat16})

HOSTS = ("cpu",)

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
    buffer (see `HostSums` and `DeviceSums`). A tensor that is not contiguous is copied first. NaN and inf spoil the
    buckets they fall into.

    Source: count sketch (Charikar, Chen, Farach-Colton 2002); as a projection, Weinberger et al. 2009,
    arXiv 0902.2206, appendix A. Raises ValueError where `size` is not a prime or `start` is negative.
    """
    _check_size(size)
    if start < 0:
        raise ValueError(f"a slice of {name!r} starts at element {start}: pass a global index of 0 or more.")
    sums = _sums_on(values.device, cells=1, size=size)
    with exact_products(values.device.type):
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
        self._ordered = sorted(self._cell_of, key=self._cell_of.__getitem__)  # cell by cell
        self._planned: tuple[tuple[int, ...], HostPass] | None = None

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
        if not tensors or any(tensor.device.type not in HOSTS for tensor in tensors.values()):
            return self.sketch_slices({name: [(0, tensor)] for name, tensor in tensors.items()}, device=device), None
        total, squares = self._planned_sums([tensors[name] for name in self._ordered])
        each_once = len(set(map(id, tensors.values()))) == len(tensors)
        held = each_once and all(tensor.dtype in FLOAT32_HOLDS for tensor in tensors.values())
        norms = gathered_sums(squares, self._cells_in).sqrt() if held else None
        return gathered_sums(total, self._cells_in), norms

    def _planned_sums(self, tensors: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Sketches and squares by cell of all parameters, on the host: by the last plan where sizes are the same."""
        sizes = (torch.get_num_threads(), *(tensor.numel() for tensor in tensors))
        planned, self._planned = self._planned, None  # while it is in use, nobody else works in its room
        if planned is None or planned[0] != sizes:
            parts = [(name, count, self._cell_of[name]) for name, count in zip(self._ordered, sizes[1:], strict=True)]
            planned = sizes, HostPass(parts, cells=1 + max(self._cell_of.values()), size=self.size)
        with exact_products("cpu"):
            sums = planned[1].sums(tensors)
        self._planned = planned
        return sums

    @torch.no_grad()
    def sketch_slices(
        self, slices: Mapping[str, Iterable[tuple[int, Tensor]]], *, device: torch.device
    ) -> Float[Tensor, "group sketch"]:
        """As `sketch`, of what a rank holds: by parameter name, runs of elements with the index of their first one."""
        cells = 1 + max(self._cell_of.values(), default=-1)
        by_device = {device: _sums_on(device, cells=cells, size=self.size)}
        with exact_products(device.type):
            # cell by cell, so that a buffer holds few; runs are made when they are read
            for name in sorted(slices, key=self._cell_of.__getitem__):
                for start, values in slices[name]:
                    if values.device not in by_device:
                        by_device[values.device] = _sums_on(values.device, cells=cells, size=self.size)
                    by_device[values.device].add(values, name=name, start=start, cell=self._cell_of[name])
            first, *others = (sums.total().to(device) for sums in by_device.values())
        return gathered_sums(sum(others, first), self._cells_in)


def _sums_on(device: torch.device, *, cells: int, size: int) -> HostSums | DeviceSums:
    if device.type in HOSTS:
        return HostSums(cells, size=size)
    return DeviceSums(cells, size=size, device=device)


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
