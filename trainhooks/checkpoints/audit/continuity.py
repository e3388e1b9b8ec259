"""Does a series of states hang together: distances between neighbours, and the places where they are out of line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

SPIKE = 2.0
JUMP = 8.0
WINDOW = 3
LEAST_DISTANCES = 4
UNRELATED = 0.1
FORGOTTEN = 100.0
_BLOCK_ELEMENTS = 2**16  # blocks of both states stay in a core's cache: four times as fast as in memory
_LARGE = 2**20
_SQUARES = (1e-24, 1e36)  # sums of squares whose terms float32 holds


@dataclass(frozen=True)
class Pair:
    """How far apart two states are: the Frobenius `distance` >= 0 over all tensors, and their `cosine` in [-1, 1].

    Matrices are taken without their mean row (which no softmax sees). The cosine is NaN where a state is zero.
    """

    distance: float
    cosine: float


def compare(first: Sequence[Tensor], second: Sequence[Tensor]) -> Pair:
    """Distance and cosine between two states, lists of tensors of equal shapes; sums of blocks in float64.

    Raises ValueError where the shapes differ.
    """
    if [tensor.shape for tensor in first] != [tensor.shape for tensor in second]:
        shapes = [[tuple(tensor.shape) for tensor in state] for state in (first, second)]
        raise ValueError(f"states of equal shapes are needed, got {shapes[0]} and {shapes[1]}.")
    sums = sum((_sums(a, b) for a, b in zip(first, second, strict=True)), torch.zeros(4, dtype=torch.float64))
    # rounding may leave a square a little below zero
    squared, first_square, second_square = (max(float(sums[i]), 0.0) for i in (0, 2, 3))
    scale = math.sqrt(first_square) * math.sqrt(second_square)
    cosine = max(-1.0, min(1.0, float(sums[1]) / scale)) if scale else math.nan
    return Pair(math.sqrt(squared), cosine)


def _sums(first: Tensor, second: Tensor) -> Tensor:
    """|a - b|^2, <a, b>, |a|^2, |b|^2 of two tensors, float64, matrices without their mean row.

    In float64; rows of a large matrix in float32 where these hold their squares, which takes half the time.
    """
    if first.numel() == 0:
        return torch.zeros(4, dtype=torch.float64)
    large = first.ndim == 2 and first.numel() >= _LARGE
    if large and torch.promote_types(first.dtype, second.dtype) != torch.float64:
        found = _sums_in(torch.float32, first, second)
        squares = found[[0, 2, 3]]
        if bool(((squares > _SQUARES[0]) & (squares < _SQUARES[1])).all()):
            return found
    return _sums_in(torch.float64, first, second)


def _sums_in(dtype: torch.dtype, first: Tensor, second: Tensor) -> Tensor:
    squares = torch.zeros(3, dtype=torch.float64)
    a_rows, b_rows = (tensor.reshape(len(tensor) if tensor.ndim > 1 else 1, -1) for tensor in (first, second))
    columns = a_rows.shape[1]
    gap_sum, a_sum, b_sum = torch.zeros(3, columns, dtype=torch.float64)
    block = max(1, _BLOCK_ELEMENTS // columns)
    ones = torch.ones(block, dtype=dtype)
    # any row near the mean: what is far from 0 in all rows alike would take the digits of what differs
    shift = a_rows[0].to(dtype) if first.ndim == 2 else torch.zeros(columns, dtype=dtype)
    for a, b in zip(a_rows.split(block), b_rows.split(block), strict=True):
        a, b = a.to(dtype), b.to(dtype)  # noqa: PLW2901 - the block in its sums' precision
        gap = a - b  # before the shift, which rounds what is small beside it
        a, b = a - shift, b - shift  # noqa: PLW2901
        gap_sum += ones[: len(a)] @ gap
        a_sum += ones[: len(a)] @ a
        b_sum += ones[: len(b)] @ b
        rows = [torch.linalg.vector_norm(x, dim=1).to(torch.float64) for x in (gap, a, b)]
        squares += torch.stack([norms @ norms for norms in rows])
    if first.ndim == 2:
        sums = (gap_sum, a_sum, b_sum)
        squares -= torch.stack([total @ total for total in sums]) / len(a_rows)
    apart, a_square, b_square = squares
    return torch.stack([apart, (a_square + b_square - apart) / 2, a_square, b_square])


def spikes(distances: Sequence[float], skips: Sequence[float]) -> list[int]:
    """Positions of states that are far from both neighbours while the neighbours are close to each other.

    `distances[i]` lies between states i and i + 1, `skips[i]` between i and i + 2. State i is out of line where the
    smaller of its two distances is more than 2 times the distance between its neighbours. A straight path gives at
    most 1/2, a random walk 1/sqrt 2, independent noise around a point 1. The ends are
    never judged, and of two neighbours only the worse one is named.
    """
    scores = {}
    for i, ((left, right), skip) in enumerate(zip(pairwise(distances), skips, strict=True), start=1):
        least = min(left, right)
        if least > SPIKE * skip:
            scores[i] = least / skip if skip else math.inf
    found: set[int] = set()
    for i in sorted(scores, key=lambda i: (-scores[i], i)):
        if not found & {i - 1, i + 1}:
            found.add(i)
    return sorted(found)


def jumps(steps: Sequence[int], distances: Sequence[float]) -> list[int]:
    """Positions i where the way from state i to i + 1 is out of line with the ways around it.

    Ways are divided by log((1 + later) / (1 + earlier)), since a run goes about as far in each doubling; out of line
    is more than 8 times the larger of the medians of the (up to) three ways on each side. Fewer than four ways: none.
    """
    if len(distances) < LEAST_DISTANCES:
        return []
    rates = [
        distance / math.log((1 + later) / (1 + earlier))
        for distance, earlier, later in zip(distances, steps, steps[1:], strict=False)
    ]
    found = []
    for i, rate in enumerate(rates):
        sides = [rates[max(0, i - WINDOW) : i], rates[i + 1 : i + 1 + WINDOW]]
        usual = max(float(np.median(side)) for side in sides if side)
        if rate > JUMP * usual:
            found.append(i)
    return found


def unrelated(steps: Sequence[int], cosines: Sequence[float]) -> list[int]:
    """Positions i where states i and i + 1 have nothing in common: a cosine below 0.1.

    Not judged where the later step is 100 times the earlier one or more (of 1 + step): a run may forget that much.
    NaN is not judged.
    """
    pairs = zip(steps, steps[1:], cosines, strict=False)
    return [
        i
        for i, (earlier, later, cosine) in enumerate(pairs)
        if cosine < UNRELATED and (1 + later) < FORGOTTEN * (1 + earlier)
    ]
