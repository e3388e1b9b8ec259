"""Labellings of the rows: the targets themselves, and the draws that a lead must beat.

A labelling here is a vector over the rows with mean 0 and norm 1: what the lead depends on is its direction alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from trainhooks.lead.change import Blocks, Rows, blocks_of

LEAST_SHARE = 1e-5


def unit_labelling(targets: Float[np.ndarray, "row"]) -> Float[np.ndarray, "row"]:
    """The targets with their mean taken off, at norm 1, float64.

    Raises ValueError where they are constant or not finite.
    """
    values = np.asarray(targets, dtype=np.float64)
    finite = bool(np.isfinite(values).all())
    largest = float(np.abs(values).max(initial=0.0)) if finite else 0.0
    values = values / largest if largest > 0.0 else values  # squares of huge or tiny targets stay numbers
    centred = values - values.mean() if largest > 0.0 else values
    norm = np.linalg.norm(centred) if finite else 0.0
    if norm <= 1e-12 * np.sqrt(len(values)):
        raise ValueError(
            "the targets are constant or not finite over the masked rows, so no direction belongs to them; "
            "mask the rows without a count, and check that counts differ."
        )
    return centred / norm


@dataclass(frozen=True)
class SingularBasis:
    """Right singular vectors and values of a change D [row, dim], largest first, null directions left out."""

    right: Float[np.ndarray, "dim rank"]
    values: Float[np.ndarray, "rank"]

    def coefficients(self, change: Rows, labelling: Float[np.ndarray, "row"]) -> Float[np.ndarray, "rank"]:
        """The labelling's products with D's left singular vectors."""
        within = np.zeros(change.shape[1])
        for where, block in blocks_of(change):
            within += labelling[where] @ block.astype(np.float64)
        products: np.ndarray = (self.right.T @ within) / self.values
        return products

    def combine(self, change: Rows, coefficients: Float[np.ndarray, "rank draw"]) -> Float[np.ndarray, "row draw"]:
        """Left singular vectors times `coefficients`, made from D without keeping the left vectors."""
        labellings = np.empty((len(change), coefficients.shape[1]))
        for where, part in self._blocks(change, self._directions(coefficients)):
            labellings[where] = part
        return labellings

    def combined_blocks(self, change: Rows, coefficients: Float[np.ndarray, "rank draw"]) -> Blocks:
        """`combine` a block of rows at a time, of coefficients of norm 1 or less.

        In float32 where its rounding cannot reach 1e-5 of a vector of norm 1, which takes half the time: where no
        coefficient stands on a singular value far below the others. Else in float64.
        """
        directions = self._directions(coefficients)
        lengths = np.linalg.norm(directions, axis=0)
        rounding = np.finfo(np.float32).eps * np.linalg.norm(self.values) * lengths.max(initial=0.0)
        yield from self._blocks(change, directions.astype(np.float32) if rounding < LEAST_SHARE else directions)

    def _directions(self, coefficients: np.ndarray) -> np.ndarray:
        directions: np.ndarray = self.right @ (coefficients / self.values[:, None])
        return directions

    def _blocks(self, change: Rows, directions: np.ndarray) -> Blocks:
        for where, block in blocks_of(change):
            yield where, block.astype(directions.dtype, copy=False) @ directions


def singular_basis(change: Rows) -> SingularBasis:
    """The singular basis of a centred change [row, dim], from its Gram matrix in float64.

    Values below 1e-6 of the largest count as zero. Raises ValueError where the change is zero.
    """
    gram = np.zeros((change.shape[1], change.shape[1]))
    for _, block in blocks_of(change):
        wide = block.astype(np.float64)
        gram += wide.T @ wide
    squares, vectors = np.linalg.eigh(gram)
    values = np.sqrt(np.clip(squares[::-1], 0.0, None))
    if not values[0] > 0.0:
        raise ValueError(
            "the first and the last record are the same up to one shift of all rows, so nothing moved; "
            "check that they come from different checkpoints."
        )
    kept = values > 1e-6 * values[0]
    return SingularBasis(np.ascontiguousarray(vectors[:, ::-1][:, kept]), values[kept])


@dataclass(frozen=True)
class Coordinates:
    """A labelling in the singular basis of a change: its coefficients, and what lies outside the column space."""

    coefficients: Float[np.ndarray, "rank"]
    outside: Float[np.ndarray, "row"]

    @classmethod
    def of(cls, labelling: Float[np.ndarray, "row"], *, change: Rows, basis: SingularBasis) -> Coordinates:
        """Of a labelling over the rows of `change`, whose basis is given."""
        coefficients = basis.coefficients(change, labelling)
        return cls(coefficients, labelling - basis.combine(change, coefficients[:, None])[:, 0])


def sign_flips(
    coefficients: Float[np.ndarray, "rank"], *, draws: int, rng: np.random.Generator
) -> Float[np.ndarray, "rank draw"]:
    """The coefficients with random signs, but the leading one: a labelling and its negative are one."""
    signs = rng.choice(np.array([-1.0, 1.0]), size=(len(coefficients), draws))
    signs[0] = 1.0
    drawn: np.ndarray = coefficients[:, None] * signs
    return drawn


def block_rotations(
    coefficients: Float[np.ndarray, "rank"], *, draws: int, rng: np.random.Generator
) -> Float[np.ndarray, "rank draw"]:
    """Coefficients turned at random within blocks of 2, 4, 8 ... neighbouring directions; the leading one kept.

    How much of the labelling lies in each block, and so how smoothly it loads on the spectrum, stays as it is.
    """
    turned = np.tile(coefficients[:, None], draws)
    start, size = 1, 2
    while start < len(coefficients):
        block = slice(start, start + size)
        turned[block] = _sphere(len(coefficients[block]), draws, rng) * np.linalg.norm(coefficients[block])
        start, size = start + size, 2 * size
    return turned


def space_rotations(
    coefficients: Float[np.ndarray, "rank"], *, draws: int, rng: np.random.Generator
) -> Float[np.ndarray, "rank draw"]:
    """Random directions of the change's column space that have the labelling's leading coefficient and norm there."""
    turned = np.tile(coefficients[:, None], draws)
    turned[1:] = _sphere(len(coefficients) - 1, draws, rng) * np.linalg.norm(coefficients[1:])
    return turned


def _sphere(dims: int, draws: int, rng: np.random.Generator) -> Float[np.ndarray, "dim draw"]:
    normal = rng.standard_normal((dims, draws))
    drawn: np.ndarray = normal / np.linalg.norm(normal, axis=0)
    return drawn


def permuted_labellings(
    labelling: Float[np.ndarray, "row"], *, draws: int, rng: np.random.Generator, bins: int = 1
) -> Float[np.ndarray, "row draw"]:
    """The labelling permuted over the rows, or only within `bins` equal runs of neighbouring ids.

    Within bins it is no null: byte-pair ids follow merges, so frequency survives at the scale of a bin.
    """
    keys = rng.random((len(labelling), draws))
    keys += (np.arange(len(labelling)) * bins // len(labelling))[:, None]
    drawn = np.empty(keys.shape, dtype=labelling.dtype)
    for draw in range(draws):  # the order of all draws at once would be one more table
        drawn[:, draw] = labelling[np.argsort(keys[:, draw])]
    return drawn


def resampling_weights(rows: int, *, draws: int, rng: np.random.Generator) -> UInt8[np.ndarray, "row draw"]:
    """How often each row comes up when `rows` rows are drawn with replacement (the bootstrap of tokens)."""
    counts = np.zeros((rows, draws), dtype=np.uint8)  # the chance that a row comes up 256 times is below 1 / 256!
    for draw in range(draws):
        counts[:, draw] = np.bincount(rng.integers(rows, size=rows), minlength=rows)
    return counts
