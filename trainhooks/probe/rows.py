"""The rows of a fit, sorted by fold, and the two passes over an output embedding that a probe makes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64, Shaped
from torch import Tensor

from trainhooks.numerics.products import mirrored, symmetric, upper_strips
from trainhooks.numerics.rank_correlation import ranks_to_scale
from trainhooks.numerics.row_blocks import even_slices, shifted_blocks, zero_rows
from trainhooks.probe.sums import Moments, ProbeSums, Products

BLOCK_ELEMENTS = 3_200_000
"""Elements gathered at once, 13 MB in float32: fewer make more additions, more leave the caches."""

HOSTS = ("cpu",)
LINE_ELEMENTS = 5 << 23
LINE_ROWS = 1 << 14
"""On a device: elements gathered at once, 168 MB in float32, and rows of a fold in one product of that precision."""

MIN_BLOCK_ROWS = 1024
SHIFT_ROWS = 63


@dataclass(frozen=True)
class Rows:
    """The rows of a fit sorted by fold: their ids, targets [row, target], weights' square roots, fold sizes.

    Depends on counts and masks alone, so a live metric builds it once. `root_weights` is None without weights.
    """

    ids: Int64[Tensor, "row"]
    y: Float64[Tensor, "row target"]
    root_weights: Float64[Tensor, "row"] | None
    fold_sizes: tuple[int, ...]

    @classmethod
    def build(
        cls,
        y: Float64[Tensor, "vocab target"],
        *,
        mask: Bool[Tensor, "vocab"],
        weights: Float[Tensor, "vocab"] | None = None,
        folds: int = 5,
        first_id: int = 0,
    ) -> Rows:
        """Rows in the mask; the fold of row i is (first_id + i) mod `folds`."""
        ids = mask.nonzero().flatten()
        fold = (ids + first_id) % folds
        ids = ids[fold.argsort(stable=True)]
        sizes = torch.bincount(fold, minlength=folds).tolist()
        roots = None if weights is None else weights[ids].double().sqrt()
        return cls(ids=ids, y=y[ids], root_weights=roots, fold_sizes=tuple(sizes))

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> Rows:
        """The same rows with their tensors on `device`."""
        roots = None if self.root_weights is None else self.root_weights.to(device)
        return replace(self, ids=self.ids.to(device), y=self.y.to(device), root_weights=roots)

    def fold_slices(self) -> list[slice]:
        """Where each fold stands."""
        slices, start = [], 0
        for size in self.fold_sizes:
            slices.append(slice(start, start + size))
            start += size
        return slices

    @cached_property
    def table(self) -> tuple[Int64[Tensor, "fold longest"], Bool[Tensor, "fold longest"]]:
        """Positions of each fold's rows, one fold a line, and which of them are real: short lines repeat position 0."""
        device = self.ids.device
        sizes = torch.tensor(self.fold_sizes, device=device)[:, None]
        column = torch.arange(max(self.fold_sizes), device=device)
        real = column < sizes
        return torch.where(real, column + sizes.cumsum(0) - sizes, 0), real

    @cached_property
    def line_ids(self) -> Int64[Tensor, "fold longest"]:
        """The ids as `table` lays them out."""
        return self.ids[self.table[0]]

    @cached_property
    def line_y(self) -> Float64[Tensor, "fold target longest"]:
        """The targets as `table` lays them out."""
        return self.y.T[:, self.table[0]].transpose(0, 1).contiguous()

    @cached_property
    def line_targets(self) -> Float64[Tensor, "fold columns longest"]:
        """[1, y less its mean] times the weights' roots as `table` lays them out, 0 where it is not real."""
        at, real = self.table
        return (self.design[:, at] * real).transpose(0, 1).contiguous()

    @cached_property
    def design(self) -> Float64[Tensor, "columns row"]:
        """[1, y less its mean] times the weights' roots, of each row."""
        z = torch.cat([torch.ones_like(self.y[:, :1]), self.y - self.mean_y], 1).T.contiguous()
        return z if self.root_weights is None else z * self.root_weights

    @cached_property
    def mean_y(self) -> Float64[Tensor, "target"]:
        """The mean of the targets, without weights."""
        return self.y.mean(0)

    @cached_property
    def line_places(self) -> Int64[Tensor, "row"]:
        """Where each row stands among all positions of `table`."""
        _, real = self.table
        return real.flatten().nonzero().flatten()

    @cached_property
    def target_ranks(self) -> Float64[Tensor, "fold target longest"]:
        """Ranks, to scale, of the targets in each fold as `table` lays them out; what is not real is ranked behind."""
        _, real = self.table
        return ranks_to_scale(self.line_y.masked_fill(~real[:, None], torch.inf))

    def in_lines(self, dtype: torch.dtype) -> _Lines:
        """What blocks of lines need in a precision, made once."""
        if dtype not in self._lines:
            largest = torch.tensor(torch.finfo(dtype).max, dtype=dtype).sqrt().item()
            zero, real = self.y.new_zeros((), dtype=dtype), self.table[1]
            below_any = (zero - 1).expand(real.shape)
            self._lines[dtype] = _Lines(
                bounds=below_any.masked_fill(real, largest), targets=self.line_targets.to(dtype), zero=zero
            )
        return self._lines[dtype]

    @cached_property
    def _lines(self) -> dict[torch.dtype, _Lines]:
        return {}

    @cached_property
    def shift_y(self) -> Float64[Tensor, "columns"]:
        """What `design` is shifted by: 0 for its first column, and the targets' mean."""
        return torch.cat([self.mean_y.new_zeros(1), self.mean_y])

    @cached_property
    def sample_ids(self) -> Int64[Tensor, "sample"]:
        """Up to twice SHIFT_ROWS ids spread over all."""
        return self.ids[:: max(1, len(self.ids) // SHIFT_ROWS)].contiguous()

    def blocks(self, dim: int) -> list[tuple[int, slice]]:
        """(fold, slice) of nearly equal blocks of one fold each, small enough for a cache."""
        limit = max(MIN_BLOCK_ROWS, BLOCK_ELEMENTS // dim)
        whole = enumerate(self.fold_slices())
        return [(fold, part) for fold, rows in whole for part in even_slices(rows.start, rows.stop, limit=limit)]


class _Lines(NamedTuple):
    """`Rows.line_targets` in a precision, and for each row the largest norm whose square is finite: -1, below any,
    where it is not real.
    """

    bounds: Float[Tensor, "fold longest"]
    targets: Float[Tensor, "fold columns longest"]
    zero: Float[Tensor, ""]


@dataclass(frozen=True)
class SumsPass:
    """What the first pass leaves: products by fold; which rows are finite, as `Rows.table` lays them out (`keep`)."""

    products: Products
    rows: Rows
    keep: Bool[Tensor, "fold longest"]
    shift: Float[Tensor, "dim"]

    @cached_property
    def sums(self) -> ProbeSums:
        """The sums about each fold's means."""
        return self.products.sums()

    @cached_property
    def moments(self) -> Moments:
        """The moments of all rows, then of all but each fold's."""
        return self.products.total_and_without_each()

    @cached_property
    def finite(self) -> Bool[Tensor, "row"]:
        """Which rows are finite, in the order of the fit."""
        return self.keep.flatten().index_select(0, self.rows.line_places)

    @cached_property
    def keeps_all(self) -> bool:
        """Whether every row is known to be finite; on a device the question would wait, and it is not asked."""
        return self.keep.device.type in HOSTS and bool((self.keep == self.rows.table[1]).numpy().all())

    def refuse_bad_rows(self, rows: Rows) -> None:
        """Raise ValueError, naming the first ids, where a row is not finite. Waits for the device."""
        if not self.keeps_all:
            refuse_rows(rows.ids[~self.finite])


def refuse_rows(bad: Int64[Tensor, "bad"]) -> None:
    """Raise ValueError, naming the first of these ids, where there are any."""
    ids = bad.sort().values.tolist()
    if ids:
        raise ValueError(
            f"{len(ids)} rows of the output embedding hold NaN or inf (or overflow when squared), ids "
            f"{ids[:5]} first. Leave them out with `mask=`, or look at the training run."
        )


def sum_rows(embedding: Shaped[Tensor, "vocab dim"], rows: Rows, *, dtype: torch.dtype) -> SumsPass:
    """The sums by fold in one pass: products of blocks in `dtype`, added up in float64.

    Rows are shifted by a middle row before the product, which keeps float32 good where the mean row is long. A
    row that holds NaN or inf, or whose squared norm overflows `dtype`, adds nothing and is marked.
    """
    shift = _middle_row(embedding, rows, dtype)
    add = _add_blocks if embedding.device.type in HOSTS else _add_lines
    xx, z, keep = add(embedding, rows, shift)
    counts = None if rows.root_weights is None else keep.sum(1).double()
    products = Products(
        xx=xx, z=z, rows=counts, shift=torch.cat([shift.double(), rows.shift_y]), eps=torch.finfo(dtype).eps
    )
    return SumsPass(products=products, rows=rows, keep=keep, shift=shift)


class _Added(NamedTuple):
    """`Products.xx` and `.z` of shifted rows x and z = [1, shifted y], and which rows are finite."""

    xx: Float64[Tensor, "fold dim dim"]
    z: Float64[Tensor, "fold columns wide"]
    keep: Bool[Tensor, "fold longest"]


def _add_blocks(embedding: Tensor, rows: Rows, shift: Tensor) -> _Added:
    """On the host: blocks of a fold that stay in a cache."""
    folds, dim, dtype = len(rows.fold_sizes), embedding.shape[1], shift.dtype
    z, any_bad = rows.design.clone(), False
    options: dict[str, Any] = {"dtype": torch.float64, "device": embedding.device}
    xx = torch.zeros(folds, dim, dim, **options)
    zx = torch.zeros(folds, len(z), dim, **options)
    finite = torch.empty(len(rows), dtype=torch.bool)
    part, strips = shift.new_empty(dim, dim), upper_strips(dim)
    for fold, where, x in fold_blocks(embedding, rows, shift):
        bad = ~torch.linalg.vector_norm(x, dim=1).square().isfinite()
        torch.logical_not(bad, out=finite[where])
        if bad.numpy().any():
            any_bad = True
            z[:, where] *= ~bad
            zero_rows(x, bad)
        if rows.root_weights is not None:
            x.mul_(rows.root_weights[where].to(dtype)[:, None])
        for strip in strips:
            right = part[strip, strip.start :]
            xx[fold, strip, strip.start :] += torch.mm(x[:, strip].T, x[:, strip.start :], out=right)
        zx[fold] += z[:, where].to(dtype) @ x
    at, real = rows.table
    lines = (z[:, at] * real).transpose(0, 1) if any_bad else rows.line_targets
    return _Added(mirrored(xx), torch.cat([zx, lines @ lines.mT], 2), finite[at] & real if any_bad else real)


def _add_lines(embedding: Tensor, rows: Rows, shift: Tensor) -> _Added:
    """On a device: all folds at once, a line each, since what costs there is the number of operations."""
    z, fixed = rows.line_targets, rows.in_lines(shift.dtype)
    folds, columns, longest = z.shape
    dim = embedding.shape[1]
    xx = _WideSum(shift.new_empty(folds, dim, dim))
    zx = _WideSum(shift.new_empty(folds, columns, dim))
    keep = torch.empty(folds, longest, dtype=torch.bool, device=embedding.device)
    roots = None if rows.root_weights is None else rows.root_weights[rows.table[0]].to(shift.dtype)[..., None]
    for where, x in line_blocks(embedding, rows, shift):
        # a comparison with NaN is false
        good = torch.le(torch.linalg.vector_norm(x, dim=2), fixed.bounds[:, where], out=keep[:, where])
        torch.where(good[..., None], x, fixed.zero, out=x)
        if roots is not None:
            x.mul_(roots[:, where])
        for strip in upper_strips(dim):
            xx.add(x[..., strip].mT, x[..., strip.start :], to=(strip, slice(strip.start, None)))
        zx.add(fixed.targets[..., where], x)
        xx.count(x.shape[1])
        zx.count(x.shape[1])
    z = z * keep[:, None]
    return _Added(symmetric(xx.total()), torch.cat([zx.total(), z @ z.mT], 2), keep)


class _WideSum:
    """A sum of products in the blocks' precision, up to LINE_ROWS rows of a fold in one, and of those in float64."""

    def __init__(self, part: Tensor) -> None:
        self._part, self._rows = part, 0
        self._sum: Tensor | None = None

    def add(self, a: Tensor, b: Tensor, *, to: tuple[slice, slice] = (slice(None), slice(None))) -> None:
        """Add the products of a block to a part of the sum; `count` its rows once all parts have them."""
        self._part[:, to[0], to[1]].baddbmm_(a, b, beta=float(self._rows > 0))  # 0: what lies there is not read

    def count(self, rows: int) -> None:
        """A block of so many rows is added."""
        self._rows += rows
        if self._rows + rows > LINE_ROWS:
            self._sum, self._rows = self.total(), 0

    def total(self) -> Tensor:
        """What was added, float64."""
        if self._rows == 0 and self._sum is not None:
            return self._sum
        wide = self._part.to(torch.float64, copy=True)
        return wide if self._sum is None else self._sum.add_(wide)


def fold_blocks(
    embedding: Shaped[Tensor, "vocab dim"], rows: Rows, shift: Float[Tensor, "dim"]
) -> Iterator[tuple[int, slice, Float[Tensor, "block dim"]]]:
    """(fold, slice, rows less the shift) by blocks of a fold, in a buffer that is used again: work in it."""
    blocks = rows.blocks(embedding.shape[1])
    pieces = shifted_blocks(embedding, shifts=[shift], ids=rows.ids, slices=[where for _, where in blocks])
    for (fold, _), (where, (x,)) in zip(blocks, pieces, strict=True):
        yield fold, where, x


def line_blocks(embedding: Tensor, rows: Rows, shift: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows less the shift [fold, positions, dim] by blocks of positions; lines that are short repeat their first."""
    folds, dim = len(rows.fold_sizes), embedding.shape[1]
    for where in even_slices(0, max(rows.fold_sizes), limit=min(LINE_ROWS, max(1, LINE_ELEMENTS // (folds * dim)))):
        taken = embedding.index_select(0, rows.line_ids[:, where].flatten())
        yield where, taken.to(shift.dtype).sub_(shift).view(folds, -1, dim)


def _middle_row(embedding: Tensor, rows: Rows, dtype: torch.dtype) -> Tensor:
    """The median of each column over up to SHIFT_ROWS rows spread over the ids, 0 standing in for NaN and inf.

    Any shift is exact in the end; one near the mean keeps the products free of cancellation. A median, because
    one exploded row must not push all the others out of float32's reach.
    """
    sample = embedding.index_select(0, rows.sample_ids).to(dtype).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return sample.kthvalue(len(sample) // 2 + 1, dim=0).values
