"""A probe's slopes without a Gram: conjugate gradients from the slopes of an earlier record, with its factor.

One iteration reads each row once: V x d operations a column where the Gram takes V x d^2. All sets of rows (all, and
all but each fold) and all targets go together. Each set has a check beside its targets: a right-hand side that loads on
every direction alike, whose solution for the factor's own matrix is known. A direction that the rows have lost since
keeps it from being solved, though no target may need that direction. What is not solved within the tolerances is not
solved here: `refine` then gives None, and the sums are made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float32, Float64, Shaped
from torch import Tensor

from trainhooks.numerics.row_blocks import even_slices
from trainhooks.probe.projection import Projected
from trainhooks.probe.rows import HOSTS, Rows, SumsPass
from trainhooks.probe.scored import Scored, ScoredColumns, scored_moments
from trainhooks.probe.solve import Coefficients, Factor

MIN_DIM = 512
"""Columns from which it pays on a CPU."""
MIN_PIVOT = 1e-3
"""The least pivot of a factor that is used again: below it float32 products lose digits."""
BLOCK_ELEMENTS = 1 << 20
NEAR_MEAN = 4
"""Columns' squared means over their variances, on average, up to which rows are multiplied as they lie, uncopied."""

PREDICTION_TOLERANCE = 2e-5
"""Error of a set's predictions, over the spread of its targets, both as norms."""
SLOPE_TOLERANCE = 5e-5
"""Error of a slope over the slope, both as norms."""
CHECK_TOLERANCE = 0.1
"""Error of a check; a direction that is lost keeps it at about 1."""
MOST_STRETCH = 4.0
"""A factor whose matrix is so much larger than the rows' own, in some direction, says too little of errors there."""
FEWEST_PASSES = 3
"""At the beginning, for one iteration, and at the end."""
MOST_RECORDS = 32
"""How long a factor is used at most, so that pivots are not much older."""


@dataclass(frozen=True, eq=False)
class RowSets:
    """All rows, then all but each fold's: where they lie in the matrix, and what their targets alone decide.

    `inside` is 1 where a row of the matrix belongs to a set, else 0; `y` are the targets less their mean, 0 outside.
    """

    rows: Rows
    inside: Float32[Tensor, "vocab set"]
    y: Float32[Tensor, "vocab target"]
    weight: Float64[Tensor, "set"]
    mean_y: Float64[Tensor, "set target"]
    square: Float64[Tensor, "set target"]

    @classmethod
    def of(cls, rows: Rows, *, vocab: int) -> RowSets:
        """Those of unweighted rows of a matrix of `vocab` rows, every one of them finite."""
        sizes = torch.tensor(rows.fold_sizes)
        fold = torch.arange(len(sizes)).repeat_interleave(sizes)
        member = torch.ones(len(rows), 1 + len(sizes), dtype=torch.float64)
        member[torch.arange(len(rows)), 1 + fold] = 0
        y = rows.y - rows.mean_y
        weight = member.sum(0)
        mean = (member.T @ y) / weight[:, None]
        square = torch.stack([(member[:, s, None] * (y - mean[s]).square()).sum(0) for s in range(len(weight))])
        inside = torch.zeros(vocab, len(weight), dtype=torch.float32).index_copy_(0, rows.ids, member.float())
        near = torch.zeros(vocab, y.shape[1], dtype=torch.float32).index_copy_(0, rows.ids, y.float())
        return cls(rows=rows, inside=inside, y=near, weight=weight, mean_y=mean + rows.mean_y, square=square)


@dataclass(frozen=True, eq=False)
class WarmStart:
    """What one record leaves for the next: slopes of every set, and the factor of the last Gram that was made.

    The last column of `slopes` solves `check`. `mean_row` is that of all rows; `copies` says that rows are far from 0
    beside their spread, so that they are multiplied less that mean. `rank` and `pivot` are those of the factor, `spent`
    the passes beyond the fewest, and `records` the records, since it was made.
    """

    factor: Factor
    sets: RowSets
    check: Float64[Tensor, "set dim 1"]
    slopes: Float64[Tensor, "set dim column"]
    mean_row: Float64[Tensor, "dim"]
    copies: bool
    rank: Float64[Tensor, ""]
    pivot: Float64[Tensor, ""]
    spent: int = 0
    records: int = 0

    @classmethod
    def of(cls, first: SumsPass, found: Coefficients, factor: Factor | None, *, vocab: int) -> WarmStart | None:
        """From sums that were solved; None where they are no start: few columns or rows, an accelerator (asking it
        whether the next record is solved would wait), weights, rows that are not finite, columns that depend on others.
        """
        rows, dim = first.rows, len(first.shift)
        fits = factor is not None and dim >= MIN_DIM and len(rows) >= 4 * dim
        plain = first.shift.device.type in HOSTS and first.shift.dtype == torch.float32 and rows.root_weights is None
        if not (fits and plain and first.keeps_all):
            return None
        assert factor is not None
        if not (float(found.rank) == dim and float(found.pivot) >= MIN_PIVOT):
            return None
        narrow = Factor(factor.lower.float(), factor.scale)
        check, solution = _check_of(narrow)
        slopes = torch.cat([found.slope[None], found.fold_slope])
        whole = first.moments.at(0)
        away = (whole.mean_x.square() * whole.weight / whole.gram.diagonal()).mean()
        return cls(
            factor=narrow,
            sets=RowSets.of(rows, vocab=vocab),
            check=check,
            slopes=torch.cat([slopes, solution], 2),
            mean_row=whole.mean_x,
            copies=bool(away > NEAR_MEAN),
            rank=found.rank,
            pivot=found.pivot,
        )

    @property
    def worn(self) -> bool:
        """Whether the passes for want of a new factor have cost as much as one by now, or it is old."""
        return self.spent >= max(4, self.slopes.shape[1] // 80) or self.records >= MOST_RECORDS

    @property
    def most_passes(self) -> int:
        """Passes after which a Gram is the better way."""
        return FEWEST_PASSES + max(4, self.slopes.shape[1] // 128)


def _check_of(factor: Factor) -> tuple[Tensor, Tensor]:
    """A right-hand side of each set, and its solution: L w and the inverse of L' times w, w random and fixed."""
    sets, dim, _ = factor.lower.shape
    generator = torch.Generator().manual_seed(0)  # of its own: the loop's numbers stay as they are
    w = torch.randn(sets, dim, 1, generator=generator, dtype=torch.float32)
    solution = torch.linalg.solve_triangular(factor.lower.mT, w, upper=True).double() * factor.scale
    return (factor.lower @ w).double() / factor.scale, solution


@dataclass(frozen=True)
class Refined:
    """A record that needed no Gram: what its figures follow from, its mean row, and what it leaves for the next."""

    scored: Scored
    mean_row: Float64[Tensor, "dim"]
    start: WarmStart
    passes: int


def refine(embedding: Shaped[Tensor, "vocab dim"], start: WarmStart) -> Refined | None:
    """The probe of these rows from an earlier record's start; None where that does not lead to the solution.

    The residual is that of the rows themselves at the beginning and at the end; between, it is carried on.
    """
    fits = embedding.shape == (len(start.sets.inside), start.slopes.shape[1]) and embedding.dtype != torch.float64
    if not fits or embedding.device != start.slopes.device:
        return None
    passes, goal = _Passes(embedding, start), _Goal(start)
    residual = passes.begin(start.slopes)
    if not bool(residual.isfinite().all()):
        return None
    while True:
        residual = _descend(passes, goal, residual, limit=start.most_passes)
        residual, norms = passes.end()
        if not bool(norms.isfinite().all()) or goal.stretch > MOST_STRETCH:
            return None
        if goal.reached(residual, goal.solve(residual), passes.slopes):
            break
        if passes.count >= start.most_passes:
            return None
    spent = start.spent + max(0, passes.count - FEWEST_PASSES)
    after = replace(start, slopes=passes.slopes, mean_row=passes.mean_row, spent=spent, records=start.records + 1)
    return Refined(_scored(passes, start, norms), passes.mean_row, after, passes.count)


def _descend(passes: _Passes, goal: _Goal, residual: Tensor, *, limit: int) -> Tensor:
    """Conjugate gradients, each column its own, until all are near enough or the passes are used up."""
    z = goal.solve(residual)
    direction, energy = z, (residual * z).sum(1, keepdim=True)
    while not goal.reached(residual, z, passes.slopes, share=0.5) and passes.count + 1 < limit:
        if goal.stretch > MOST_STRETCH:
            break
        direction, product = passes.multiply(direction)
        curvature = (direction * product).sum(1, keepdim=True)
        length = ((residual * direction).sum(1, keepdim=True) / curvature).where(curvature > 0, 0)
        goal.stretch = max(goal.stretch, float(length.max()))
        residual = residual - passes.step(length) * product
        z = goal.solve(residual)
        before, energy = energy, (residual * z).sum(1, keepdim=True)
        direction = z + (energy / before).where(before > 0, 0) * direction
    return residual


class _Goal:
    """When a residual is small enough, by its solution with the factor, which is near the error itself.

    `stretch` is how much longer an error was seen to be than that, at most.
    """

    def __init__(self, start: WarmStart) -> None:
        self._factor, self.stretch = start.factor, 1.0
        square = PREDICTION_TOLERANCE**2 * start.sets.square
        self._energy = torch.cat([square, torch.full_like(square[:, :1], CHECK_TOLERANCE**2)], 1)

    def solve(self, residual: Tensor) -> Tensor:
        """The factor's solution."""
        lower, scale = self._factor
        narrow = (residual * scale).float()
        # one by one: as a batch they took three times as long at 2,048 columns
        solved = [torch.cholesky_solve(right, factor) for right, factor in zip(narrow, lower, strict=True)]
        return torch.stack(solved).double() * scale

    def reached(self, residual: Tensor, z: Tensor, slopes: Tensor, *, share: float = 1.0) -> bool:
        """Whether predictions and slopes are within `share` of their tolerances; false where there is NaN."""
        near = self.stretch * (residual * z).sum(1) <= share**2 * self._energy
        z, slopes = self.stretch * z[..., :-1], slopes[..., :-1]
        still = z.square().sum(1) <= (share * SLOPE_TOLERANCE) ** 2 * slopes.square().sum(1)
        return bool(near.all() and still.all())


class _Passes:
    """Products with the rows of one matrix in blocks, and the slopes and predictions that they lead to.

    Columns are [set, dim, column]; `level` is what predictions lack beside the shift's share. Products are float32,
    sums of blocks float64.
    """

    def __init__(self, embedding: Tensor, start: WarmStart) -> None:
        sets = start.sets
        self._embedding, self._sets, self._start = embedding, sets, start
        self.shift = start.mean_row.float() if start.copies else torch.zeros_like(start.mean_row, dtype=torch.float32)
        self._copies = start.copies or embedding.dtype != torch.float32
        self._y = torch.cat([sets.y, sets.y.new_zeros(len(sets.y), 1)], 1)[:, None]
        self._shape = (len(sets.weight), start.slopes.shape[2])
        self.predicted = torch.empty(len(embedding), *self._shape, dtype=torch.float32)
        self._product = torch.empty_like(self.predicted)
        self._direction = start.slopes
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

    def _ready(self, columns: Tensor, mean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Columns in float32 side by side; their products with the mean rows, negative and as they are."""
        level = (mean * columns).sum(1)
        flat = columns.float().transpose(0, 1).flatten(1).contiguous()
        return flat, -level.float().flatten(), level.float().double()

    def begin(self, slopes: Tensor) -> Tensor:
        """The residual of slopes to begin with, and the means of the sets."""
        sets = self._sets
        self.slopes = slopes.float().double()
        about = (self._start.mean_row - self.shift)[:, None]
        flat, negative, self.level = self._ready(self.slopes, about)
        total, wide = torch.zeros(flat.shape[1] + len(sets.weight), flat.shape[0], dtype=torch.float64), []
        for where, x in self._blocks():
            torch.addmm(negative, x, flat, out=self.predicted[where].flatten(1))
            error = self._error(where)
            wide.append(error.sum(0, dtype=torch.float64))
            total += torch.cat([error.flatten(1), sets.inside[where]], 1).T @ x
        columns = flat.shape[1]
        self.mean = (total[columns:] / sets.weight[:, None])[..., None]
        return self._residual(total[:columns], torch.stack(wide).sum(0))

    def end(self) -> tuple[Tensor, Tensor]:
        """The residual of what was reached, from the rows themselves; and the norms of the rows about their mean."""
        mean = self.mean[0, :, 0]
        total, norms = torch.zeros(self._shape[0] * self._shape[1], len(mean), dtype=torch.float64), []
        error = self._error(slice(None))
        narrow = mean.float()
        for where, x in self._blocks():
            total += error[where].flatten(1).T @ x
            along = torch.mv(x, narrow).double()
            norms.append(torch.linalg.vector_norm(x, dim=1).double().square().sub_(along, alpha=2))
        square = torch.cat(norms).add_(torch.dot(mean, mean)).clamp_min_(0)
        return self._residual(total, error.sum(0, dtype=torch.float64)), square.sqrt_()

    def multiply(self, direction: Tensor) -> tuple[Tensor, Tensor]:
        """A direction, rounded to float32, and the centred Gram of each set times it."""
        self._direction = direction.float().double()
        flat, negative, self._along = self._ready(self._direction, self.mean)
        total = torch.zeros(flat.shape[1], flat.shape[0], dtype=torch.float64)
        inside = self._sets.inside[..., None]
        for where, x in self._blocks():
            torch.addmm(negative, x, flat, out=self._product[where].flatten(1))
            total += (self._product[where] * inside[where]).flatten(1).T @ x
        return self._direction, self._columns(total)

    def step(self, length: Tensor) -> Tensor:
        """Go along the direction that was multiplied last; the length [set, 1, column], rounded to float32."""
        narrow = length.float()
        self.slopes = self.slopes + narrow.double() * self._direction
        self.predicted.addcmul_(self._product, narrow[:, 0])
        self.level = self.level + narrow[:, 0].double() * self._along
        return narrow.double()

    def _error(self, where: slice) -> Tensor:
        return (self._y[where] - self.predicted[where]).mul_(self._sets.inside[where][..., None])

    def _columns(self, total: Tensor) -> Tensor:
        return total.view(*self._shape, -1).mT

    def _residual(self, total: Tensor, error: Tensor) -> Tensor:
        """From plain products with errors, and the errors' own sums [set, column]."""
        residual = self._columns(total) - self.mean * error[:, None]
        residual[..., -1:] += self._start.check
        return residual

    @property
    def mean_row(self) -> Float64[Tensor, "dim"]:
        """That of all rows."""
        return self.mean[0, :, 0] + self.shift


def _scored(passes: _Passes, start: WarmStart, norms: Float64[Tensor, "vocab"]) -> Scored:
    """What the figures follow from, as the second pass of a probe with sums leaves it."""
    sets = start.sets
    rows, targets = sets.rows, sets.y.shape[1]
    slopes = passes.slopes[..., :targets]
    lift = passes.level[:, :targets] + (slopes * passes.shift[:, None]).sum(1)
    intercept = sets.mean_y - (slopes * (passes.mean + passes.shift[:, None])).sum(1)
    at = rows.line_ids
    own = torch.stack([passes.predicted[:, 1 + fold, :targets][ids] for fold, ids in enumerate(at)])
    values = torch.cat([own, passes.predicted[:, 0, :targets][at]], 2).mT.double()
    layout = ScoredColumns(targets, norms=True)
    projected = Projected(values, passes.shift.double(), norms[at])
    found = Coefficients(
        slope=slopes[0],
        intercept=intercept[0],
        fold_slope=slopes[1:],
        fold_intercept=intercept[1:],
        trained_mean=sets.mean_y[1:],
        trained_square=sets.square[1:],
        trained_weight=sets.weight[1:, None],
        square=sets.square[0],
        rank=start.rank,
        pivot=start.pivot,
        eps=torch.finfo(torch.float32).eps,
    )
    return Scored(
        layout=layout,
        found=found,
        moments=scored_moments(rows, projected, keep=rows.table[1], keeps_all=True, layout=layout),
        lift=torch.cat([lift[1:], lift[:1].expand(len(lift) - 1, -1)], 1),
        weight=sets.weight[0],
        rows=sets.weight[0],
        mean_y=sets.mean_y[0],
    )


def warm_bytes(*, dim: int, sets: int) -> int:
    """Bytes of the factors that a start keeps, on the host; the rest is small beside them."""
    return 4 * sets * dim**2 if dim >= MIN_DIM else 0
