"""The change of the output embedding, split into what goes with a labelling and the rest, without forming the rest.

With D(t) the centred change since the first record and y a centred unit labelling, the labelling's part is
b(t) = D(t)'y and the rest R(t) = D(t) - y b(t)'. As R is orthogonal to y, <R(t), R(T)> = <D(t), D(T)> - <b(t), b(T)>,
so one product D(t)'[y_1 ... y_K] a record gives every labelling's b and R progress.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Float, Int, Shaped

from trainhooks.lead.change import AS_IT_IS, Change, Matrix, slices

# below these shares of the change's square, float32 records no longer tell a part from rounding
LEAST_PART = 1e-12
LEAST_REST = 1e-6


@dataclass(frozen=True)
class Progress:
    """How far each labelling's part, and the rest, have come at each record: 0 at the first, 1 at the last.

    `part` is <b(t), b(T)> / |b(T)|^2, `rest` <R(t), R(T)> / |R(T)|^2; a row is NaN where that part of the final
    change is zero. `cosine` is cos(b(t), b(T)), 0 where b(t) is zero (as at the first record). `size` is |b(T)|,
    in units of the embedding, for a labelling of norm 1.
    """

    part: Float[np.ndarray, "labelling record"]
    rest: Float[np.ndarray, "labelling record"]
    cosine: Float[np.ndarray, "labelling record"]
    size: Float[np.ndarray, "labelling"]


@dataclass(frozen=True)
class Products:
    """All that the progress of every labelling needs of the records, float64; T is the last record of the arrays.

    `inner` <b(t), b(T)>, `square` |b(t)|^2, `total` <D(t), D(T)>, `apart` |D(t) - D(T)|^2; `resampled_inner` and
    `resampled_total` are the first labelling's inner and total in each bootstrap sample of the rows.
    """

    inner: Float[np.ndarray, "record labelling"]
    square: Float[np.ndarray, "record labelling"]
    total: Float[np.ndarray, "record"]
    apart: Float[np.ndarray, "record"]
    resampled_inner: Float[np.ndarray, "record draw"]
    resampled_total: Float[np.ndarray, "record draw"]

    @classmethod
    def stacked(cls, records: Sequence[Mapping[str, np.ndarray]]) -> Products:
        """From what `Decomposition.measure` gave at each record, in order."""
        return cls(**{field.name: np.stack([record[field.name] for record in records]) for field in fields(cls)})

    def at(self, kept: np.ndarray) -> Products:
        """Of these records alone."""
        return Products(**{field.name: getattr(self, field.name)[kept] for field in fields(self)})

    @property
    def distance(self) -> Float[np.ndarray, "record"]:
        """|D(t) - D(T)| / |D(T)|: 1 at the first record, 0 at the last. It depends on the run's length."""
        distance: np.ndarray = np.sqrt(self.apart / self.total[-1])
        return distance

    def progress(self) -> Progress:
        """Progress of every labelling."""
        inner, square = self.inner.T, self.square.T
        norms = np.sqrt(square * square[:, -1:])
        cosine = np.divide(inner, norms, out=np.zeros_like(inner), where=norms > 0.0)
        part, rest = _split(inner, np.broadcast_to(self.total, inner.shape))
        return Progress(part, rest, cosine, np.sqrt(square[:, -1]))

    def resampled_progress(self) -> tuple[Float[np.ndarray, "draw record"], Float[np.ndarray, "draw record"]]:
        """Progress of the first labelling's part and of its rest, in each bootstrap sample of the rows."""
        return _split(self.resampled_inner.T, self.resampled_total.T)


def centred_change(
    matrix: Float[np.ndarray, "row dim"], *, first: Float[np.ndarray, "row dim"]
) -> Float[np.ndarray, "row dim"]:
    """D: the matrix minus the first one, its mean row taken off (a shift of all rows moves no probability)."""
    return Change(matrix, first=first).whole()


class Decomposition:
    """Measures one record after another against the last.

    `first` and `last` are the ends' matrices, `labellings` centred unit vectors over their rows, or those of `ids`.
    `weights` [row, draw] adds, for the first labelling, one bootstrap sample of the rows a column: how often each
    comes up. Changes are taken times `scale`. Products run in float32, sums over them in float64; no matrix is copied.
    """

    def __init__(
        self,
        first: Matrix,
        last: Matrix,
        *,
        labellings: Float[np.ndarray, "row labelling"],
        weights: Shaped[np.ndarray, "row draw"] | None = None,
        ids: Int[np.ndarray, "row"] | None = None,
        scale: np.float32 = AS_IT_IS,
    ) -> None:
        self._first, self._ids, self._scale = first, ids, scale
        self._labellings = np.ascontiguousarray(labellings, dtype=np.float32)
        self._samples = None if weights is None else Samples.of(labellings[:, 0], weights)
        self._final = self.change_to(last)
        found = walked(self._final, [self])[0]
        self._final_products = found.products()
        self.at_last = self.figures(found)

    @property
    def at_first(self) -> dict[str, np.ndarray]:
        """What `measure` gives for `first`, where D is 0; `at_last` is that for `last`."""
        nothing = {name: np.zeros_like(value) for name, value in self.at_last.items()}
        return nothing | {"apart": self.at_last["total"]}

    def change_to(self, matrix: Matrix) -> Change:
        """D of a record."""
        return Change(matrix, first=self._first, ids=self._ids, scale=self._scale)

    def measure(self, matrix: Matrix) -> dict[str, np.ndarray]:
        """The record's row of each array of `Products`."""
        return self.figures(walked(self.change_to(matrix), [self])[0])

    def figures(self, found: Walk) -> dict[str, np.ndarray]:
        """`measure`, of what a walk over the record's change has found."""
        products, rows, count = found.products(), found.rows, self._labellings.shape[1]
        inner = np.einsum("kd,kd->k", products, self._final_products)
        part, mean = np.split(inner[count:], 2)
        return {
            "inner": inner[:count],
            "square": np.einsum("kd,kd->k", products[:count], products[:count]),
            "total": rows.sum(),
            "apart": found.apart,
            "resampled_inner": part,
            "resampled_total": (np.empty(0) if self._samples is None else self._samples.sums(rows)) - mean,
        }

    def begin(self) -> Walk:
        """A walk over a change that has not seen a row."""
        return Walk(self._final, self._labellings, self._samples)


class Walk:
    """What is summed over the rows of one D(t): D(t)'y of every column, <D(t), D(T)> by row, |D(t) - D(T)|^2."""

    def __init__(self, final: Change, labellings: np.ndarray, samples: Samples | None) -> None:
        dims = final.shape[1]
        self._final, self._labellings, self._samples = final.blocks(), labellings, samples
        self._sums = np.zeros((labellings.shape[1], dims), dtype=np.float32)
        self._sampled = np.zeros((0 if samples is None else samples.columns, dims), dtype=np.float32)
        self._buffer = np.empty_like(max(self._sums, self._sampled, key=len))
        self.rows, self.apart = np.empty(len(final)), np.zeros(())

    def add(self, where: slice, block: Float[np.ndarray, "block dim"]) -> None:
        """Add the next block of rows of D(t)."""
        self._add_product(self._sums, self._labellings[where], block)
        if self._samples is not None:
            self._add_product(self._sampled, self._samples.block(where), block)
        _, end = next(self._final)
        self.rows[where] = np.einsum("vd,vd->v", block, end)
        np.subtract(block, end, out=end)
        self.apart += np.einsum("vd,vd->v", end, end).sum(dtype=np.float64)

    def _add_product(self, sums: np.ndarray, columns: np.ndarray, block: np.ndarray) -> None:
        sums += np.matmul(columns.T, block, out=self._buffer[: len(sums)])

    def products(self) -> Float[np.ndarray, "column dim"]:
        """Those of the labellings, then those of the samples' two columns, float64."""
        found = [self._sums.astype(np.float64)]
        if self._samples is not None:
            found += self._samples.products(self._sampled.astype(np.float64))
        return np.concatenate(found)


def walked(change: Change, parts: Sequence[Decomposition]) -> list[Walk]:
    """One pass over a change for several ends at once: they must have the same rows, first record and scale."""
    walks = [part.begin() for part in parts]
    for where, block in change.blocks():
        for walk in walks:
            walk.add(where, block)
    return walks


@dataclass(frozen=True)
class Samples:
    """Bootstrap samples of the rows, for one labelling y: `weights` say how often each comes up in each.

    With m and s the mean and norm of y in a sample of n rows, its labelling is w (y - m) / s and its mean w / sqrt n:
    both come from products with w y and w, so that a sample costs two columns and a byte a row.
    """

    labelling: Float[np.ndarray, "row"]
    weights: Shaped[np.ndarray, "row draw"]
    means: Float[np.ndarray, "draw"]
    norms: Float[np.ndarray, "draw"]

    @classmethod
    def of(cls, labelling: Float[np.ndarray, "row"], weights: Shaped[np.ndarray, "row draw"]) -> Samples:
        """The samples that these weights draw."""
        rows, y = len(labelling), np.asarray(labelling, dtype=np.float64)
        means = weighted_sums(y, weights) / rows
        squares = sum(
            (np.einsum("vk,vk->k", weights[b], np.square(y[b, None] - means)) for b in slices(rows)),
            np.zeros(len(means)),
        )
        return cls(y.astype(np.float32), weights, means, np.sqrt(squares))

    @property
    def columns(self) -> int:
        """How many columns `block` has."""
        return 2 * len(self.means)

    def block(self, where: slice) -> Float[np.ndarray, "block column"]:
        """w y and w of a block of rows, side by side."""
        weights = self.weights[where].astype(np.float32)
        return np.concatenate([weights * self.labelling[where, None], weights], axis=1)

    def products(self, found: Float[np.ndarray, "column dim"]) -> list[np.ndarray]:
        """D'w (y - m) / s and D'w / sqrt n of each sample, from the products with `block`; 0 where y is constant."""
        along, plain = np.split(found, 2)
        along = along - self.means[:, None] * plain
        norms = self.norms[:, None]
        part = np.divide(along, norms, out=np.zeros_like(along), where=norms > 0.0)
        return [part, plain / np.sqrt(len(self.labelling))]

    def sums(self, rows: Float[np.ndarray, "row"]) -> Float[np.ndarray, "draw"]:
        """A sum over rows, in each sample."""
        return weighted_sums(rows, self.weights)


def weighted_sums(rows: Float[np.ndarray, "row"], weights: Shaped[np.ndarray, "row draw"]) -> Float[np.ndarray, "draw"]:
    """The sum of `rows` in each sample, float64, without a float64 copy of the weights."""
    zero = np.zeros(weights.shape[1])
    return sum((rows[where] @ weights[where].astype(np.float64) for where in slices(len(rows))), zero)


def _split(inner: np.ndarray, total: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Progress of part and rest from <b(t), b(T)> and <D(t), D(T)>, NaN where the final one is only rounding."""
    rest = total - inner
    final, part_end, rest_end = total[:, -1:], inner[:, -1:], rest[:, -1:]
    part_end = np.where(part_end > LEAST_PART * final, part_end, np.nan)
    rest_end = np.where(rest_end > LEAST_REST * final, rest_end, np.nan)
    return inner / part_end, rest / rest_end
