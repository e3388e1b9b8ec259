"""The rows of a fit, sorted by fold, and the two passes over an output embedding that a probe makes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64, Shaped
from torch import Tensor

from trainhooks.numerics.products import mirrored, upper_strips
from trainhooks.numerics.rank_correlation import average_ranks
from trainhooks.numerics.row_blocks import _take, even_slices, shifted_blocks, zero_rows
from trainhooks.probe.sums import ProbeSums, centred_sums

BLOCK_ELEMENTS = 3_200_000
"""Elements gathered at once, 13 MB in float32: fewer make more additions, more leave the caches."""

HOSTS = ("cpu",)
LINE_ELEMENTS = 1 << 24
LINE_ROWS = 1 << 14
"""On a device: elements gathered at once, 64 MB in float32, and rows of a fold in one product of that precision."""

KEPT_BYTES = 1 << 25
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
    def line_y(self) -> Float64[Tensor, "target fold longest"]:
        """The targets as `table` lays them out."""
        return self.y.T[:, self.table[0]]

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
    def target_ranks(self) -> Float64[Tensor, "target fold longest"]:
        """Average ranks of the targets in each fold as `table` lays them out; what is not real is ranked behind."""
        _, real = self.table
        return average_ranks(self.line_y.masked_fill(~real, torch.inf))

    def blocks(self, dim: int) -> list[tuple[int, slice]]:
        """(fold, slice) of nearly equal blocks of one fold each, small enough for a cache."""
        limit = max(MIN_BLOCK_ROWS, BLOCK_ELEMENTS // dim)
        whole = enumerate(self.fold_slices())
        return [(fold, part) for fold, rows in whole for part in even_slices(rows.start, rows.stop, limit=limit)]


@dataclass(frozen=True)
class SumsPass:
    """What the first pass leaves: the sums; for each row whether it is finite and its squared norm about `shift`.

    `rows_less_shift` are the rows themselves in the order of the fit, those that are not finite as zeros, for the
    passes that follow: on the host alone, where gathering them again takes longer than a product of few columns, and
    up to `KEPT_BYTES`, beyond which a second copy of the matrix costs more than it saves.
    """

    sums: ProbeSums
    finite: Bool[Tensor, "row"]
    square_norms: Float[Tensor, "row"]
    shift: Float[Tensor, "dim"]
    rows_less_shift: Float[Tensor, "row dim"] | None = None

    def refuse_bad_rows(self, rows: Rows) -> None:
        """Raise ValueError, naming the first ids, where a row is not finite. Waits for the device."""
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
    shift = _middle_row(embedding, rows.ids, dtype)
    add = _add_blocks if embedding.device.type in HOSTS else _add_lines
    added = add(embedding, rows, shift)
    sums = centred_sums(
        products_xx=mirrored(added.xx),
        products_xz=added.zx.mT,
        products_zz=added.zz,
        rows=added.rows.double(),
        shift_x=shift.double(),
        shift_y=rows.mean_y,
        eps=torch.finfo(dtype).eps,
    )
    return SumsPass(
        sums=sums,
        finite=added.square_norms < torch.inf,
        square_norms=added.square_norms,
        shift=shift,
        rows_less_shift=added.kept,
    )


class _Added(NamedTuple):
    """Products of shifted rows x and z = [1, shifted y] by fold, and what is known of each row."""

    xx: Float64[Tensor, "fold dim dim"]
    zx: Float64[Tensor, "fold columns dim"]
    zz: Float64[Tensor, "fold columns columns"]
    rows: Int64[Tensor, "fold"]
    square_norms: Float[Tensor, "row"]
    kept: Float[Tensor, "row dim"] | None = None


def _add_blocks(embedding: Tensor, rows: Rows, shift: Tensor) -> _Added:
    """On the host: blocks of a fold that stay in a cache."""
    folds, dim, dtype = len(rows.fold_sizes), embedding.shape[1], shift.dtype
    z = rows.design.clone()
    options: dict[str, Any] = {"dtype": torch.float64, "device": embedding.device}
    xx = torch.zeros(folds, dim, dim, **options)
    zx = torch.zeros(folds, len(z), dim, **options)
    square_norms = torch.empty(len(rows), dtype=dtype, device=embedding.device)
    strips = upper_strips(dim)
    keeps = rows.root_weights is None and len(rows) * dim * dtype.itemsize <= KEPT_BYTES
    kept = torch.empty(len(rows), dim, dtype=dtype) if keeps else None
    for fold, where, x in _fold_blocks(embedding, rows, shift, into=kept):
        square_norms[where] = torch.linalg.vector_norm(x, dim=1).square()
        bad = ~square_norms[where].isfinite()
        z[:, where] *= ~bad
        zero_rows(x, bad)
        if rows.root_weights is not None:
            x.mul_(rows.root_weights[where].to(dtype)[:, None])
        for strip in strips:
            xx[fold, strip, strip.start :] += x[:, strip].T @ x[:, strip.start :]
        zx[fold] += z[:, where].to(dtype) @ x
    finite, slices = square_norms.isfinite(), rows.fold_slices()
    zz = torch.stack([z[:, fold] @ z[:, fold].T for fold in slices])
    counts = torch.stack([finite[fold].sum() for fold in slices])
    return _Added(xx=xx, zx=zx, zz=zz, rows=counts, square_norms=square_norms, kept=kept)


def _add_lines(embedding: Tensor, rows: Rows, shift: Tensor) -> _Added:
    """On a device: all folds at once, a line each, since what costs there is the number of operations."""
    z, (_, real) = rows.line_targets, rows.table
    folds, columns, longest = z.shape
    dim = embedding.shape[1]
    options: dict[str, Any] = {"dtype": torch.float64, "device": embedding.device}
    xx = torch.zeros(folds, dim, dim, **options)
    zx = torch.zeros(folds, columns, dim, **options)
    norms = torch.empty(folds, longest, dtype=shift.dtype, device=embedding.device)
    roots = None if rows.root_weights is None else rows.root_weights[rows.table[0]].to(shift.dtype)[..., None]
    for where, x in _line_blocks(embedding, rows, shift):
        torch.linalg.vector_norm(x, dim=2, out=norms[:, where])
        good = (norms[:, where].square() < torch.inf).logical_and_(real[:, where])
        x.masked_fill_(good.logical_not_()[..., None], 0)
        if roots is not None:
            x.mul_(roots[:, where])
        for strip in upper_strips(dim):
            xx[:, strip, strip.start :] += x[..., strip].mT @ x[..., strip.start :]
        zx += z[..., where].to(x.dtype) @ x
    squares = norms.square()
    finite = (squares < torch.inf).logical_and_(real)
    z = z * finite[:, None]
    return _Added(
        xx=xx,
        zx=zx,
        zz=z @ z.mT,
        rows=finite.sum(1),
        square_norms=squares.flatten().index_select(0, rows.line_places),
    )


def project_rows(
    embedding: Shaped[Tensor, "vocab dim"],
    rows: Rows,
    *,
    first: SumsPass,
    by_fold: Float64[Tensor, "fold dim held_out"],
    for_all: Float64[Tensor, "dim all"],
) -> tuple[Float64[Tensor, "row held_out"], Float64[Tensor, "row all"]]:
    """Shifted rows times their own fold's columns, and times columns shared by all, in one skinny product a block.

    Rows that were not finite project to 0.
    """
    dtype, width = first.shift.dtype, by_fold.shape[2]
    columns = torch.cat([by_fold, for_all.expand(len(by_fold), -1, -1)], 2).mT.to(dtype).contiguous()
    if embedding.device.type in HOSTS:
        out = torch.empty(columns.shape[1], len(rows), dtype=torch.float64, device=embedding.device)
        for fold, where, x in kept_blocks(embedding, rows, first=first):
            # columns first: three times as fast as x @ columns for so few of them
            out[:, where] = (columns[fold] @ x.T).double()
    else:
        lines = [columns @ x.mT for _, x in _line_blocks(embedding, rows, first.shift)]
        line = lines[0] if len(lines) == 1 else torch.cat(lines, 2)
        out = line.transpose(0, 1).flatten(1).index_select(1, rows.line_places).double()
    out = out.masked_fill_(~first.finite, 0).T
    return out[:, :width], out[:, width:]


def kept_blocks(
    embedding: Shaped[Tensor, "vocab dim"], rows: Rows, *, first: SumsPass
) -> Iterator[tuple[int, slice, Float[Tensor, "block dim"]]]:
    """(fold, slice, rows less the shift) by blocks: what the first pass has kept, else gathered again. Only read them.

    Rows that are not finite may be zeros or as they are.
    """
    if first.rows_less_shift is None:
        yield from _fold_blocks(embedding, rows, first.shift)
        return
    for fold, where in rows.blocks(embedding.shape[1]):
        yield fold, where, first.rows_less_shift[where]


def _fold_blocks(
    embedding: Tensor, rows: Rows, shift: Tensor, *, into: Tensor | None = None
) -> Iterator[tuple[int, slice, Tensor]]:
    """Rows less the shift by blocks of a fold; `into` [row, dim] keeps all of them, else a buffer is used again."""
    blocks = rows.blocks(embedding.shape[1])
    if into is not None:
        for fold, where in blocks:
            _take(embedding, rows.ids, where, out=into[where])
            yield fold, where, into[where].sub_(shift)
        return
    slices = [where for _, where in blocks]
    pieces = shifted_blocks(embedding, shifts=[shift], ids=rows.ids, slices=slices)
    for (fold, _), (where, (x,)) in zip(blocks, pieces, strict=True):
        yield fold, where, x


def _line_blocks(embedding: Tensor, rows: Rows, shift: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows less the shift [fold, positions, dim] by blocks of positions; lines that are short repeat their first."""
    folds, dim = len(rows.fold_sizes), embedding.shape[1]
    for where in even_slices(0, max(rows.fold_sizes), limit=min(LINE_ROWS, max(1, LINE_ELEMENTS // (folds * dim)))):
        taken = embedding.index_select(0, rows.line_ids[:, where].flatten())
        yield where, taken.to(shift.dtype).sub_(shift).view(folds, -1, dim)


def _middle_row(embedding: Tensor, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """The median of each column over up to SHIFT_ROWS rows spread over the ids, 0 standing in for NaN and inf.

    Any shift is exact in the end; one near the mean keeps the products free of cancellation. A median, because
    one exploded row must not push all the others out of float32's reach.
    """
    sample = embedding[ids[:: max(1, len(ids) // SHIFT_ROWS)]].to(dtype)
    columns = sample.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).T.contiguous()
    return columns.kthvalue(columns.shape[1] // 2 + 1, dim=1).values
