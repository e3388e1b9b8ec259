"""The change of the output embedding, split into what goes with a labelling and the rest, without forming the rest.

With D(t) the centred change since the first record and y a centred unit labelling, the labelling's part is
b(t) = D(t)'y and the rest R(t) = D(t) - y b(t)'. As R is orthogonal to y, <R(t), R(T)> = <D(t), D(T)> - <b(t), b(T)>,
so one product D(t)'[y_1 ... y_K] a record gives every labelling's b and R progress.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Float

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
    change: np.ndarray = matrix - first
    change -= np.full(len(change), 1.0 / len(change), dtype=np.float32) @ change
    return change


class Decomposition:
    """Measures one record after another against the last.

    `first` and `last` are the ends' matrices, `labellings` centred unit vectors. `weights` [row, draw] adds, for the
    first labelling, one bootstrap sample of the rows a column. Products run in float32, sums over them in float64.
    """

    def __init__(
        self,
        first: Float[np.ndarray, "row dim"],
        last: Float[np.ndarray, "row dim"],
        *,
        labellings: Float[np.ndarray, "row labelling"],
        weights: Float[np.ndarray, "row draw"] | None = None,
    ) -> None:
        self.first = first
        self.final_change = centred_change(last, first=first)
        self.weights = np.empty((len(first), 0)) if weights is None else weights
        self._count = labellings.shape[1]
        columns = [labellings.astype(np.float32), *_resampled_columns(labellings[:, 0], self.weights)]
        self._columns = np.concatenate(columns, axis=1)
        self._final_products = self._products(self.final_change)

    def _products(self, change: np.ndarray) -> np.ndarray:
        products: np.ndarray = (change.T @ self._columns).astype(np.float64)
        return products

    def measure(self, matrix: Float[np.ndarray, "row dim"]) -> dict[str, np.ndarray]:
        """The record's row of each array of `Products`."""
        change = centred_change(matrix, first=self.first)
        products = self._products(change)
        inner = np.einsum("dk,dk->k", products, self._final_products)
        square = np.einsum("dk,dk->k", products[:, : self._count], products[:, : self._count])
        rows = np.einsum("vd,vd->v", change, self.final_change).astype(np.float64)
        part, mean = np.split(inner[self._count :], 2)
        change -= self.final_change
        return {
            "inner": inner[: self._count],
            "square": square,
            "total": rows.sum(),
            "apart": np.einsum("vd,vd->v", change, change).sum(dtype=np.float64),
            "resampled_inner": part,
            "resampled_total": rows @ self.weights - mean,
        }


def _resampled_columns(labelling: np.ndarray, weights: np.ndarray) -> list[np.ndarray]:
    """For each sample, the weighted unit labelling and the weighted mean, both as columns to multiply D with."""
    rows = len(labelling)
    centred = labelling[:, None] - labelling @ weights / rows
    norms = np.sqrt(np.einsum("vk,vk,vk->k", weights, centred, centred))
    part = np.divide(weights * centred, norms, out=np.zeros_like(centred), where=norms > 0.0)
    return [part.astype(np.float32), (weights / np.sqrt(rows)).astype(np.float32)]


def _split(inner: np.ndarray, total: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Progress of part and rest from <b(t), b(T)> and <D(t), D(T)>, NaN where the final one is only rounding."""
    rest = total - inner
    final, part_end, rest_end = total[:, -1:], inner[:, -1:], rest[:, -1:]
    part_end = np.where(part_end > LEAST_PART * final, part_end, np.nan)
    rest_end = np.where(rest_end > LEAST_REST * final, rest_end, np.nan)
    return inner / part_end, rest / rest_end
