"""Movement between centred matrices, row by row, all from one pass in blocks of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from trainhooks.numerics.gram import GramSums, ProductSum, centred_blocks, working_dtype
from trainhooks.numerics.norms import accumulator
from trainhooks.numerics.products import exact_products
from trainhooks.numerics.row_sums import RowSums


@dataclass(frozen=True)
class Movement:
    """How one centred matrix X lies to another, Y. All are 0-d, float64, in the units of the matrices.

    `norm` = |X|_F, `reference_norm` = |Y|_F, `distance` = |X - Y|_F, `cosine` = <X, Y> / (|X| |Y|) in [-1, 1],
    NaN where either is zero. Row by row the distance splits exactly into a change of length and a turn,
    |x - y|^2 = (|x| - |y|)^2 + 2 |x| |y| (1 - cos(x, y)); summed over rows these are `radial`^2 and `angular`^2.
    """

    norm: Float[Tensor, ""]
    reference_norm: Float[Tensor, ""]
    distance: Float[Tensor, ""]
    cosine: Float[Tensor, ""]
    radial: Float[Tensor, ""]
    angular: Float[Tensor, ""]


@dataclass(frozen=True)
class RowPairs:
    """Rows x of one centred matrix beside the same rows y of another: |x|, |y|, |x - y| and <x, x - y>, by row."""

    norms: Float[Tensor, "row"]
    reference_norms: Float[Tensor, "row"]
    distances: Float[Tensor, "row"]
    along: Float[Tensor, "row"]

    def movement(self) -> Movement:
        """The figures of all rows together."""
        stacked = torch.stack([self.norms, self.reference_norms, self.distances, self.along])
        return PairSums.of(stacked).movement(0)

    def cosines(self) -> Float[Tensor, "row"]:
        """Each row's cosine in [-1, 1], float64; NaN where either row is zero."""
        k, l, _, _ = self._wide()  # noqa: E741
        return _cosine(self._dots(), k, l)

    def _dots(self) -> Tensor:
        k, _, _, along = self._wide()
        return k.square() - along

    def _wide(self) -> list[Tensor]:
        wide = accumulator(self.norms.device)
        return [v.to(wide) for v in (self.norms, self.reference_norms, self.distances, self.along)]


@dataclass(frozen=True)
class PairSums:
    """Products, summed over the rows, of columns that say how x lies to each of `pairs` references y.

    Columns: 1; |x|; |x|^2; |y|^2, |x - y|^2 and <x, x - y> of each pair; and (|x| - |y|)^2 / 4 of each. Small enough to
    travel: figures follow from them wherever they lie.
    """

    products: Float[Tensor, "column column"]

    @classmethod
    def of(cls, stacked: Float[Tensor, "quantity row"]) -> PairSums:
        """Of |x|, then |y|, then |x - y|, then <x, x - y> of all pairs, by row."""
        wide = stacked.to(accumulator(stacked.device))
        pairs = len(wide) // 3
        squares, along = wide[: 1 + 2 * pairs].square(), wide[1 + 2 * pairs :]
        # |x| - |y| = (x - y).(x + y) / (|x| + |y|): no digits lost to two nearly equal norms
        lengths = (wide[0] + wide[1 : 1 + pairs]).clamp_min_(torch.finfo(wide.dtype).tiny)
        half_change = torch.sub(along, squares[1 + pairs :], alpha=0.5).div_(lengths)
        columns = torch.cat([torch.ones_like(wide[:1]), wide[:1], squares, along, half_change.square_()])
        return cls(columns @ columns.T)

    @property
    def pairs(self) -> int:
        """How many references there are."""
        return (len(self.products) - 3) // 4

    def movement(self, pair: int) -> Movement:
        """The figures of one pair."""
        xx, yy, dd, along, change = (self.products[0, place] for place in (2, *self._places(pair)))
        radial = 4 * change
        norm, reference = xx.sqrt(), yy.sqrt()
        cosine = _cosine(xx - along, norm, reference)
        return Movement(norm, reference, dd.sqrt(), cosine, radial.sqrt(), (dd - radial).clamp(min=0).sqrt())

    def mean_norm(self) -> Float[Tensor, ""]:
        """The mean of |x|; NaN where there is no row."""
        return self.products[0, 1] / self.products[0, 0]

    def grams(self, pair: int, *, energies: Float[Tensor, "3"]) -> GramSums:
        """What CKA asks of a pair, beside the squares of X'X, X'Y and Y'Y, summed."""
        y = self._places(pair)[0]
        p = self.products
        return GramSums(energies, count=p[0, 0], k=p[0, 2], l=p[0, y], kk=p[2, 2], kl=p[2, y], ll=p[y, y])

    def _places(self, pair: int) -> tuple[int, int, int, int]:
        first, pairs = 3 + pair, self.pairs
        return first, first + pairs, first + 2 * pairs, first + 3 * pairs


def _cosine(dot: Tensor, norm: Tensor, other: Tensor) -> Tensor:
    """dot / (norm other) in [-1, 1]; NaN where a norm is 0, since the rounding of a dot that should be 0 gives inf."""
    cosine = (dot / (norm * other)).clamp(-1.0, 1.0)
    return torch.where((norm == 0) | (other == 0), torch.full_like(cosine, float("nan")), cosine)


@dataclass(frozen=True)
class Comparison:
    """One matrix against several: |x|, then |y|, |x - y| and <x, x - y> of all, by row; X'Y of the last if asked for.

    `last_gram` is Y'Y of that last one where asked for; `previous` its sums, where they are known.
    """

    stacked: Float[Tensor, "quantity row"]
    cross: Float[Tensor, "dim dim"] | None = None
    last_gram: Float[Tensor, "dim dim"] | None = None
    previous: RowSums | None = None

    @property
    def norms(self) -> Float[Tensor, "row"]:
        """The row norms |x|."""
        return self.stacked[0]

    @property
    def pairs(self) -> tuple[RowPairs, ...]:
        """A pair for each reference."""
        of_pairs = self.stacked[1:].unflatten(0, (3, -1)).unbind(1)
        return tuple(RowPairs(self.norms, *quantities) for quantities in of_pairs)


def compare(
    current: Float[Tensor, "vocab dim"],
    references: Sequence[Tensor],
    *,
    ids: Int64[Tensor, "row"] | None,
    means: Sequence[Tensor] | None,
    cross: bool = False,
    last_gram: bool = False,
) -> Comparison:
    """Each of `references` [vocab, dim] beside `current`, over the rows of `ids` (None: all), in one pass.

    `means` are the mean rows of all of them, `current` first, where they are known. `cross` adds X'Y of the last,
    `last_gram` its own Y'Y.
    The extra memory is a block of rows of each. Raises ValueError where the numbers of rows differ.
    """
    heads = [current, *(reference.to(current.device) for reference in references)]
    like = current.new_empty(0, dtype=working_dtype(current))
    rows = len(current) if ids is None else len(ids)
    pairs = len(references)
    stacked = like.new_empty(1 + 3 * pairs, rows)
    norms, distances, along = stacked[: 1 + pairs], stacked[1 + pairs : 1 + 2 * pairs], stacked[1 + 2 * pairs :]
    dim = current.shape[1]
    products = [ProductSum(dim, dim, like=like) if asked else None for asked in (cross, last_gram)]
    with exact_products(current.device.type):
        for where, blocks in centred_blocks(*heads, ids=ids, means=means):
            x, *others = (block.to(like.dtype) for block in blocks)
            torch.linalg.vector_norm(x, dim=1, out=norms[0][where])
            if products[0] is not None:
                products[0].add(x, others[-1])
            if products[1] is not None:
                products[1].add_square(others[-1])
            for i, y in enumerate(others):
                torch.linalg.vector_norm(y, dim=1, out=norms[i + 1][where])
                difference = torch.sub(x, y, out=y)
                torch.linalg.vector_norm(difference, dim=1, out=distances[i][where])
                torch.sum(difference.mul_(x), dim=1, out=along[i][where])
    xy = None if products[0] is None else products[0].total()
    return Comparison(stacked, cross=xy, last_gram=None if products[1] is None else products[1].energy_total())
