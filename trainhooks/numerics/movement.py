"""Movement between centred matrices, row by row, all from one pass in blocks of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from trainhooks.numerics.gram import ProductSum, centred_blocks, working_dtype
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
        k, l, d, along = self._wide()  # noqa: E741
        # |x| - |y| = (x - y).(x + y) / (|x| + |y|): no digits lost to two nearly equal norms
        lengths = k + l
        change = torch.where(lengths == 0, torch.zeros_like(k), (2 * along - d.square()) / lengths)
        xx, yy, dd, radial = (v.square().sum() for v in (k, l, d, change))
        cosine = _cosine(self._dots().sum(), xx.sqrt(), yy.sqrt())
        return Movement(xx.sqrt(), yy.sqrt(), dd.sqrt(), cosine, radial.sqrt(), (dd - radial).clamp(min=0).sqrt())

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


def _cosine(dot: Tensor, norm: Tensor, other: Tensor) -> Tensor:
    """dot / (norm other) in [-1, 1]; NaN where a norm is 0, since the rounding of a dot that should be 0 gives inf."""
    cosine = (dot / (norm * other)).clamp(-1.0, 1.0)
    return torch.where((norm == 0) | (other == 0), torch.full_like(cosine, float("nan")), cosine)


@dataclass(frozen=True)
class Comparison:
    """One matrix against several: its row norms, a pair for each reference, and X'Y of the last one if asked for.

    `previous` are the sums of that last one, where they are known.
    """

    norms: Float[Tensor, "row"]
    pairs: tuple[RowPairs, ...]
    cross: Float[Tensor, "dim dim"] | None = None
    previous: RowSums | None = None


def compare(
    current: Float[Tensor, "vocab dim"],
    references: Sequence[Tensor],
    *,
    ids: Int64[Tensor, "row"] | None,
    means: Sequence[Tensor] | None,
    cross: bool = False,
) -> Comparison:
    """Each of `references` [vocab, dim] beside `current`, over the rows of `ids` (None: all), in one pass.

    `means` are the mean rows of all of them, `current` first, where they are known. `cross` adds X'Y of the last.
    The extra memory is a block of rows of each. Raises ValueError where the numbers of rows differ.
    """
    heads = [current, *(reference.to(current.device) for reference in references)]
    like = current.new_empty(0, dtype=working_dtype(current))
    rows = len(current) if ids is None else len(ids)
    norms = [like.new_empty(rows) for _ in heads]
    distances, along = ([like.new_empty(rows) for _ in references] for _ in range(2))
    product = ProductSum(current.shape[1], current.shape[1], like=like) if cross else None
    with exact_products(current.device.type):
        for where, blocks in centred_blocks(*heads, ids=ids, means=means):
            x, *others = (block.to(like.dtype) for block in blocks)
            torch.linalg.vector_norm(x, dim=1, out=norms[0][where])
            if product is not None:
                product.add(x, others[-1])
            for i, y in enumerate(others):
                torch.linalg.vector_norm(y, dim=1, out=norms[i + 1][where])
                difference = torch.sub(x, y, out=y)
                torch.linalg.vector_norm(difference, dim=1, out=distances[i][where])
                torch.sum(difference.mul_(x), dim=1, out=along[i][where])
    pairs = tuple(map(RowPairs, [norms[0]] * len(references), norms[1:], distances, along))
    return Comparison(norms=norms[0], pairs=pairs, cross=None if product is None else product.total())
