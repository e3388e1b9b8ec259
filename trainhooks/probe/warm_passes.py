"""Products with the rows of one matrix in blocks, for all sets of rows that a probe is solved for at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from trainhooks.numerics.row_blocks import even_slices
from trainhooks.probe.rows import Rows

BLOCK_ELEMENTS = 1 << 21
"""Elements multiplied at once, to and fro, 8 MB: fewer make more operations."""


@dataclass(frozen=True, eq=False)
class RowSets:
    """Sets of rows: all, all but each fold's, and two halves of the folds; and what their targets alone decide.

    The first ones have a column for each target, and each half has one without a target, its check. `columns` says
    where those of a set stand. `inside` is 1 where a row of the matrix belongs to a column's set, `folds` where it
    belongs to a fold, else 0; `y` is a column's target less the mean of all, 0 outside its set. `weight`, `mean_y` and
    `square` have no halves.
    """

    rows: Rows
    members: Float64[Tensor, "set fold"]
    columns: tuple[slice, ...]
    inside: Float32[Tensor, "vocab column"]
    folds: Float32[Tensor, "vocab fold"]
    y: Float32[Tensor, "vocab column"]
    weight: Float64[Tensor, "trained"]
    mean_y: Float64[Tensor, "trained target"]
    square: Float64[Tensor, "trained target"]

    @classmethod
    def of(cls, rows: Rows, *, vocab: int) -> RowSets:
        """Those of unweighted rows of a matrix of `vocab` rows, every one of them finite."""
        y = rows.y - rows.mean_y
        fold = torch.arange(len(rows.fold_sizes)).repeat_interleave(torch.tensor(rows.fold_sizes))
        one_hot = torch.eye(len(rows.fold_sizes), dtype=torch.float64)[fold]
        members, columns = _members(len(rows.fold_sizes), targets=y.shape[1])
        of_column = _set_of_each(columns)
        inside, trained = one_hot @ members.T, len(members) - 2
        weight = inside.sum(0)[:trained]
        mean = (inside[:, :trained].T @ y) / weight[:, None]
        square = torch.stack([inside[:, s] @ (y - mean[s]).square() for s in range(trained)])
        known = torch.cat([y, y.new_zeros(len(y), 1)], 1)[:, _targets(columns)]
        laid = [known * inside[:, of_column], inside[:, of_column], one_hot]
        y_columns, in_columns, in_folds = (
            torch.zeros(vocab, one.shape[1], dtype=torch.float32).index_copy_(0, rows.ids, one.float()) for one in laid
        )
        return cls(
            rows=rows,
            members=members,
            columns=columns,
            inside=in_columns,
            folds=in_folds,
            y=y_columns,
            weight=weight,
            mean_y=mean + rows.mean_y,
            square=square,
        )

    @cached_property
    def set_of_column(self) -> Int64[Tensor, "column"]:
        """Which set a column belongs to."""
        return _set_of_each(self.columns)

    def fits(self, rows: Rows, *, vocab: int) -> bool:
        """Whether `of` would give these."""
        return self.rows is rows and len(self.inside) == vocab


def _members(folds: int, *, targets: int) -> tuple[Tensor, tuple[slice, ...]]:
    """`RowSets.members` and `.columns`."""
    each = torch.eye(folds, dtype=torch.float64)
    first = each[: folds // 2].sum(0, keepdim=True)
    members = torch.cat([torch.ones_like(first), 1 - each, first, 1 - first])
    ends = [targets * (s + 1) for s in range(1 + folds)]
    ends += [ends[-1] + 1, ends[-1] + 2]
    return members, tuple(slice(a, b) for a, b in zip([0, *ends], ends, strict=False))


def _set_of_each(columns: tuple[slice, ...]) -> Tensor:
    """`RowSets.set_of_column`."""
    return torch.arange(len(columns)).repeat_interleave(torch.tensor([its.stop - its.start for its in columns]))


def _targets(columns: tuple[slice, ...]) -> list[int]:
    """Which target a column has; one behind the last for a half."""
    targets = columns[0].stop
    return [*range(targets)] * (len(columns) - 2) + [targets] * 2


class Passes:
    """The passes over one matrix, and the slopes and predictions that they lead to.

    Columns are those of the sets; `level` is what predictions lack beside the shift's share. Products are float32,
    sums of blocks float64.
    """

    def __init__(self, embedding: Tensor, sets: RowSets, *, mean_row: Tensor, copies: bool) -> None:
        self._embedding, self._sets, self._before = embedding, sets, mean_row
        self.shift = mean_row.float() if copies else torch.zeros_like(mean_row, dtype=torch.float32)
        self._copies = copies or embedding.dtype != torch.float32
        self.predicted = torch.empty_like(sets.y)
        self._product = sets.y.new_empty(len(sets.y), 1 + sets.y.shape[1])
        self._norms = sets.y.new_empty(len(sets.y))
        self.count = 0

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Rows less the shift."""
        dim = self._embedding.shape[1]
        slices = even_slices(0, len(self._embedding), limit=max(256, BLOCK_ELEMENTS // dim))
        longest = max(where.stop - where.start for where in slices)
        buffer = torch.empty(longest if self._copies else 0, dim, dtype=torch.float32)
        self.count += 1
        for where in slices:
            x = self._embedding[where]
            yield where, torch.sub(x, self.shift, out=buffer[: len(x)]) if self._copies else x

    def begin(self, slopes: Float64[Tensor, "column dim"]) -> Float64[Tensor, "column dim"]:
        """The residual of slopes to begin with, rounded to float32, without the checks' own sides; and the means."""
        sets = self._sets
        self.slopes = slopes.float().double()
        narrow = self.slopes.float().T
        negative = -(self.slopes @ (self._before - self.shift)).float()
        self.level = -negative.double()
        columns = len(slopes)
        sides = torch.cat([sets.y, sets.folds], 1)
        total = torch.zeros(sides.shape[1], len(narrow), dtype=torch.float64)
        for where, x in self._blocks():
            predicted = torch.addmm(negative, x, narrow, out=self.predicted[where])
            torch.addcmul(sets.y[where], predicted, sets.inside[where], value=-1, out=sides[where, :columns])
            total += sides[where].T @ x
            torch.linalg.vector_norm(x, dim=1, out=self._norms[where])
        errors = sides[:, :columns].sum(0, dtype=torch.float64)
        sizes = torch.tensor(sets.rows.fold_sizes, dtype=torch.float64)
        self.mean = (sets.members @ total[columns:]) / (sets.members @ sizes)[:, None]
        self._about = self.mean[sets.set_of_column]
        self.mean_rows = self._about + self.shift
        return torch.addcmul(total[:columns], self._about, errors[:, None], value=-1)

    def multiply(self, direction: Float64[Tensor, "column dim"]) -> tuple[Tensor, Tensor]:
        """A direction, rounded to float32, and the centred Gram of each column's set times it."""
        self._direction = direction.float().double()
        level = torch.linalg.vecdot(self._about, self._direction)
        negative = torch.cat([-level.float(), level.new_zeros(1, dtype=torch.float32)])
        self._along = -negative[:-1].double()
        narrow = torch.cat([self._direction, self.mean[:1]]).float().T
        total = torch.zeros(len(direction), len(narrow), dtype=torch.float64)
        for where, x in self._blocks():
            product = torch.addmm(negative, x, narrow, out=self._product[where])
            total += (product[:, :-1] * self._sets.inside[where]).T @ x
        return self._direction, total

    def step(self, length: Float64[Tensor, "column"]) -> Float64[Tensor, "column"]:
        """Go along the direction that was multiplied last; the length, rounded to float32."""
        narrow = length.float()
        rounded = narrow.double()
        self.slopes = torch.addcmul(self.slopes, rounded[:, None], self._direction)
        self.predicted.addcmul_(self._product[:, :-1], narrow)
        self.level = torch.addcmul(self.level, rounded, self._along)
        return rounded

    @property
    def finite(self) -> bool:
        """Whether the squares of all rows are."""
        return bool(self._norms.max() < torch.finfo(torch.float32).max ** 0.5)

    def norms(self) -> Float64[Tensor, "vocab"]:
        """Those of the rows about the mean of the first set."""
        mean = self.mean[0]
        if self.count > 1:
            along = self._product[:, -1].double()
        else:
            narrow = mean.float()
            along = torch.cat([torch.mv(x, narrow) for _, x in self._blocks()]).double()
        square = self._norms.double().square().sub_(along, alpha=2).add_(torch.dot(mean, mean))
        return square.clamp_min_(0).sqrt_()

    @property
    def mean_row(self) -> Float64[Tensor, "dim"]:
        """That of all rows."""
        return self.mean[0] + self.shift
