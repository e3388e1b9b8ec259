"""A probe's slopes without a Gram: conjugate gradients from the slopes of an earlier record, with its factor.

One iteration reads each row once: V x d operations a column where the Gram takes V x d^2. All sets of rows (all, and
all but each fold) and all targets go together, each column its own. Beside them stand two checks, each over half of the
folds: right-hand sides that load on every direction alike, whose solutions for the factor's own matrix are known. A
direction that the rows have lost since keeps its check from being solved, though no target may need that direction; and
what a set has lost, the half that is part of it has lost too. What is not solved within the tolerances is not solved
here: `refine` then gives None, and the sums are made.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64, Shaped
from torch import Tensor

from trainhooks.probe.projection import Projected
from trainhooks.probe.rows import HOSTS, SumsPass
from trainhooks.probe.scored import Scored, ScoredColumns, scored_moments
from trainhooks.probe.solve import Coefficients, Factor, factorise, solve_factored
from trainhooks.probe.warm_passes import Passes, RowSets

MIN_DIM = 192
"""Columns from which it pays on a CPU."""
MIN_PIVOT = 1e-3
"""The least pivot of a factor that is used again: below it float32 products lose digits."""
NEAR_MEAN = 4
"""Columns' squared means over their variances, on average, up to which rows are multiplied as they lie, uncopied."""

PREDICTION_TOLERANCE = 2e-5
"""Error of a set's predictions, over the spread of its targets, both as norms."""
SLOPE_TOLERANCE = 5e-5
"""Error of a slope over the slope, both as norms."""
INTERCEPT_TOLERANCE = 1e-5
"""Error of an intercept over itself, or over 1 nat where that is more."""
CHECK_TOLERANCE = 0.1
"""Error of a check; a direction that is lost keeps it at about 1."""
MOST_STRETCH = 4.0
"""A factor whose matrix is so much larger than the rows' own, in some direction, says too little of errors there."""
MOST_ERROR = 1e5
"""Errors at the beginning, over their tolerances, which float32 products still carry down to a tenth of these."""
FEWEST_PASSES = 2
"""At the beginning, and for one iteration."""
MOST_RECORDS = 32
"""How long a factor is used at most, so that pivots are not much older."""


@dataclass(frozen=True, eq=False)
class WarmStart:
    """What one record leaves for the next: slopes of every column of `sets`, and the factor of the last Gram made.

    The last columns solve `check`. `moved` is how `slopes` differ from those of the record before and `ahead` how far
    they are likely to go on, both 0 where nothing is known. `mean_row` is that of all rows; `copies` says that rows are
    far from 0 beside their spread, so that they are multiplied less that mean. `rank` and `pivot` are those of the
    factor, `spent` the passes beyond the fewest, and `records` the records, since it was made.
    """

    factor: Factor
    sets: RowSets
    check: Float64[Tensor, "half dim"]
    slopes: Float64[Tensor, "column dim"]
    moved: Float64[Tensor, "column dim"]
    ahead: Float64[Tensor, "column dim"]
    mean_row: Float64[Tensor, "dim"]
    copies: bool
    rank: Float64[Tensor, ""]
    pivot: Float64[Tensor, ""]
    spent: int = 0
    records: int = 0

    @classmethod
    def of(
        cls,
        first: SumsPass,
        found: Coefficients,
        factor: Factor | None,
        *,
        vocab: int,
        before: WarmStart | None = None,
    ) -> WarmStart | None:
        """From sums that were solved; None where they are no start: few columns or rows, an accelerator (asking it
        whether the next record is solved would wait), weights, rows that are not finite, columns that depend on others.
        `before` is what an earlier record has left.
        """
        rows, dim = first.rows, len(first.shift)
        fits = factor is not None and dim >= MIN_DIM and len(rows) >= 4 * dim
        plain = first.shift.device.type in HOSTS and first.shift.dtype == torch.float32 and rows.root_weights is None
        if not (fits and plain and first.keeps_all):
            return None
        assert factor is not None
        if not (float(found.rank) == dim and float(found.pivot) >= MIN_PIVOT):
            return None
        if before is not None and not before.sets.fits(rows, vocab=vocab):
            before = None
        sets = RowSets.of(rows, vocab=vocab) if before is None else before.sets
        factor = _with_halves(factor, first, sets)
        if factor is None:
            return None
        check, solution = _check_of(Factor(factor.lower[-2:], factor.scale[-2:]))
        targets = torch.cat([found.slope[None], found.fold_slope]).mT.flatten(0, 1)
        slopes = torch.cat([targets, solution])
        moved = torch.zeros_like(slopes)
        if before is not None:
            moved[: len(targets)] = targets - before.slopes[: len(targets)]
        whole = first.moments.at(0)
        away = (whole.mean_x.square() * whole.weight / whole.gram.diagonal()).mean()
        return cls(
            factor=factor,
            sets=sets,
            check=check,
            slopes=slopes,
            moved=moved,
            ahead=torch.zeros_like(moved) if before is None else _ahead(moved, before=before.moved),
            mean_row=whole.mean_x,
            copies=bool(away > NEAR_MEAN),
            rank=found.rank,
            pivot=found.pivot,
        )

    def far_from(self, mean: Float64[Tensor, "dim"]) -> bool:
        """Whether rows have their mean, less what is taken off them, so far out that float32 products lose digits."""
        share = (mean * self.factor.scale[0, :, 0]).square().mean() * self.sets.weight[0]
        return bool(share > NEAR_MEAN)

    @property
    def worn(self) -> bool:
        """Whether the passes for want of a new factor have cost as much as one by now, or it is old."""
        return self.spent >= max(12, self.slopes.shape[1] // 80) or self.records >= MOST_RECORDS

    @property
    def most_passes(self) -> int:
        """Passes after which a Gram is the better way."""
        return FEWEST_PASSES + max(4, self.slopes.shape[1] // 128)

    def after(self, passes: Passes) -> WarmStart:
        """What a record that needed no Gram leaves."""
        moved = passes.slopes - self.slopes
        return replace(
            self,
            slopes=passes.slopes,
            moved=moved,
            ahead=_ahead(moved, before=self.moved),
            mean_row=passes.mean_row,
            spent=self.spent + max(0, passes.count - FEWEST_PASSES),
            records=self.records + 1,
        )


def _ahead(moved: Tensor, *, before: Tensor) -> Tensor:
    """How far columns [column, dim] are likely to move next: the share of the last move that went on from `before`."""
    known = before.square().sum(1, keepdim=True)
    return ((moved * before).sum(1, keepdim=True) / known).where(known > 0, 0).clamp_(0, 1) * moved


def _with_halves(factor: Factor, first: SumsPass, sets: RowSets) -> Factor | None:
    """A factor in float32 with those of the halves behind it; None where one of these is no start."""
    whole_first = torch.cat([sets.members[:1], sets.members[-2:]])
    halves = factorise(first.products.of_members(whole_first).at(slice(1, None)))
    if not float(halves.lower.diagonal(dim1=1, dim2=2).min().square()) >= MIN_PIVOT:
        return None
    return Factor(torch.cat([factor.lower.float(), halves.lower.float()]), torch.cat([factor.scale, halves.scale]))


def _check_of(factor: Factor) -> tuple[Tensor, Tensor]:
    """A right-hand side of each half, and its solution: L w and the inverse of L' times w, w random and fixed."""
    sets, dim, _ = factor.lower.shape
    generator = torch.Generator().manual_seed(0)  # of its own: the loop's numbers stay as they are
    w = torch.randn(sets, dim, 1, generator=generator, dtype=torch.float32)
    solution = torch.linalg.solve_triangular(factor.lower.mT, w, upper=True).double() * factor.scale
    return ((factor.lower @ w).double() / factor.scale)[..., 0], solution[..., 0]


@dataclass(frozen=True)
class Refined:
    """A record that needed no Gram: what its figures follow from, its mean row, and what it leaves for the next."""

    scored: Scored
    mean_row: Float64[Tensor, "dim"]
    start: WarmStart
    passes: int


def refine(embedding: Shaped[Tensor, "vocab dim"], start: WarmStart) -> Refined | None:
    """The probe of these rows from an earlier record's start; None where that does not lead to the solution.

    The residual is that of the rows themselves at the beginning, and is carried on from there.
    """
    fits = embedding.shape == (len(start.sets.inside), start.slopes.shape[1]) and embedding.dtype != torch.float64
    if not fits or embedding.device != start.slopes.device:
        return None
    passes = Passes(embedding, start.sets, mean_row=start.mean_row, copies=start.copies)
    goal = _Goal(start)
    residual = passes.begin(start.slopes + start.ahead)
    residual[-len(start.check) :] += start.check
    if not passes.finite or not bool(residual.isfinite().all()) or start.far_from(passes.mean[0]):
        return None
    if not _descend(passes, goal, residual, start):
        return None
    return Refined(_scored(passes, start), passes.mean_row, start.after(passes), passes.count)


def _descend(passes: Passes, goal: _Goal, residual: Tensor, start: WarmStart) -> bool:
    """Conjugate gradients, each column its own, until all are near enough (True) or a Gram is the better way."""
    z = goal.solve(residual)
    energy = torch.linalg.vecdot(residual, z)
    if not goal.reached(energy, z, passes, share=MOST_ERROR):
        return False
    direction = z
    while not goal.reached(energy, z, passes):
        if passes.count >= start.most_passes or goal.stretch > MOST_STRETCH:
            return False
        direction, product = passes.multiply(direction)
        curvature = torch.linalg.vecdot(direction, product)
        length = (torch.linalg.vecdot(residual, direction) / curvature).where(curvature > 0, 0)
        goal.stretch = max(goal.stretch, float(length.max()))
        residual = torch.addcmul(residual, passes.step(length)[:, None], product, value=-1)
        z = goal.solve(residual)
        before, energy = energy, torch.linalg.vecdot(residual, z)
        direction = torch.addcmul(z, (energy / before).where(before > 0, 0)[:, None], direction)
    return goal.stretch <= MOST_STRETCH


class _Goal:
    """When a residual is small enough, by its solution with the factor, which is near the error itself.

    `stretch` is how much longer an error was seen to be than that, at most.
    """

    def __init__(self, start: WarmStart) -> None:
        self._factor, self.stretch = start.factor, 1.0
        self._shape, self._mean_y = start.sets.square.shape, start.sets.mean_y.flatten()
        energy = PREDICTION_TOLERANCE**2 * start.sets.square.flatten()
        self._energy = torch.cat([energy, torch.full_like(energy[: len(start.check)], CHECK_TOLERANCE**2)])
        self._scale = start.factor.scale[start.sets.set_of_column, :, 0]

    def solve(self, residual: Tensor) -> Tensor:
        """The factor's solution."""
        narrow = (residual * self._scale).float()
        sets, targets = self._shape
        parts = (slice(0, sets), sets * targets, targets), (slice(sets, None), 2, 1)
        solved, start = [], 0
        for its, columns, each in parts:
            right = narrow[start : start + columns].view(-1, each, narrow.shape[1]).mT
            solved.append(solve_factored(self._factor.lower[its], right).mT.reshape(columns, -1))
            start += columns
        return torch.cat(solved).double() * self._scale

    def reached(self, energy: Tensor, z: Tensor, passes: Passes, *, share: float = 1.0) -> bool:
        """Whether predictions, checks, slopes and intercepts are within `share` of their tolerances; false for NaN."""
        targets, least = len(self._mean_y), (share / self.stretch) ** 2
        z, slopes = z[:targets], passes.slopes[:targets]
        found = torch.cat([energy, torch.linalg.vecdot(z, z)])
        most = torch.cat([self._energy, SLOPE_TOLERANCE**2 * torch.linalg.vecdot(slopes, slopes)])
        if not bool((found <= least * most).all()):
            return False
        about = passes.mean_rows[:targets]
        intercept = (self._mean_y - torch.linalg.vecdot(slopes, about)).abs().clamp_min(1)
        return bool((torch.linalg.vecdot(z, about).abs() <= least**0.5 * INTERCEPT_TOLERANCE * intercept).all())


def _scored(passes: Passes, start: WarmStart) -> Scored:
    """What the figures follow from, as the second pass of a probe with sums leaves it."""
    sets = start.sets
    rows, (count, targets) = sets.rows, sets.square.shape
    slopes = passes.slopes[: count * targets].view(count, targets, -1).mT
    lift = passes.level[: count * targets].view(count, targets) + (slopes * passes.shift[:, None]).sum(1)
    about = passes.mean_rows[: count * targets].view(count, targets, -1).mT
    intercept = sets.mean_y - (slopes * about).sum(1)
    at = rows.line_ids
    taken = passes.predicted.index_select(0, at.flatten()).view(*at.shape, -1)
    own = [taken[fold, :, its] for fold, its in enumerate(sets.columns[1:count])]
    values = torch.cat([torch.stack(own), taken[..., :targets]], 2).mT.double()
    layout = ScoredColumns(targets, norms=True)
    projected = Projected(values, passes.shift.double(), passes.norms()[at])
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


def warm_bytes(*, vocab: int, dim: int, sets: int, targets: int) -> int:
    """Bytes that a start keeps on the host: the factors of sets and two halves, and a few numbers a row of the matrix.

    The slopes are small beside them.
    """
    of_row = 2 * (sets * targets + 2) + sets - 1  # targets and sets by column, folds
    return 4 * ((sets + 2) * dim**2 + of_row * vocab) if dim >= MIN_DIM else 0
