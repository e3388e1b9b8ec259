"""A run as a sequence of matrices, and the two trajectories whose answers are known: straight line, random walk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

from trainhooks.lead.change import Change, Matrix, farthest_element

FARTHEST = 1e6
"""A record with elements that many times those of both ends is broken, and alone would decide every onset."""


@runtime_checkable
class Trajectory(Protocol):
    """Anything with `steps` [record], a length, and `[i]` -> output embedding at record i, [vocab, dim].

    A store's `snapshots` is one; so is `ArrayTrajectory`. Records are asked for in increasing order.
    """

    @property
    def steps(self) -> np.ndarray:
        """Optimizer updates done at each record, increasing."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> np.ndarray: ...


class ArrayTrajectory:
    """A trajectory that lies in memory as one array [record, vocab, dim].

    Raises ValueError where steps and records differ in number.
    """

    def __init__(self, matrices: Float[np.ndarray, "record vocab dim"], *, steps: Int[np.ndarray, "step"]) -> None:
        if len(matrices) != len(steps):
            raise ValueError(f"got {len(matrices)} matrices and {len(steps)} steps; give one step a matrix.")
        self.matrices = matrices
        self.steps = steps

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int, /) -> np.ndarray:
        matrix: np.ndarray = self.matrices[index]
        return matrix


class StraightLine:
    """The null that gives nothing priority: E_0 + progress(t) (E_T - E_0), [vocab, dim] at each record.

    Every linear part of it moves in step with every other, so its lead is 1.
    """

    def __init__(
        self,
        first: Float[np.ndarray, "vocab dim"],
        last: Float[np.ndarray, "vocab dim"],
        *,
        steps: Int[np.ndarray, "record"],
        progress: Float[np.ndarray, "record"],
    ) -> None:
        self.first = first
        self.change = last - first
        self.steps = steps
        self.progress = np.asarray(progress, dtype=np.float32)

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int, /) -> np.ndarray:
        matrix: np.ndarray = self.first + self.progress[index] * self.change
        return matrix


def random_walk(steps: Int[np.ndarray, "record"], *, rows: int, dims: int, seed: int = 0) -> ArrayTrajectory:
    """A Gaussian random walk [record, rows, dims] from 0, of unit variance a step and component.

    Its relative distance to its end falls as sqrt(1 - t/T): half of the way at 0.75 T, 0.9 of it at 0.99 T.
    """
    rng = np.random.default_rng(seed)
    moves = rng.standard_normal((len(steps), rows, dims), dtype=np.float32)
    moves *= np.sqrt(np.diff(steps, prepend=steps[0])).astype(np.float32)[:, None, None]
    return ArrayTrajectory(np.cumsum(moves, axis=0), steps=steps)


def thinned(steps: Int[np.ndarray, "record"], *, limit: int) -> Int[np.ndarray, "kept"]:
    """Indices of at most `limit` records spread evenly over log(1 + step), first and last among them.

    All records where there are no more than `limit`. Where early steps are too coarse for an even spread, fewer.
    """
    if len(steps) <= limit:
        return np.arange(len(steps))
    logs = np.log1p(steps)
    wanted = np.linspace(logs[0], logs[-1], limit)
    right = np.clip(np.searchsorted(logs, wanted), 1, len(steps) - 1)
    nearer_left = wanted - logs[right - 1] < logs[right] - wanted
    return np.unique(right - nearer_left)


def matrices(
    trajectory: Trajectory,
    indices: Int[np.ndarray, "kept"],
    *,
    mask: Bool[np.ndarray, "vocab"],
    farthest: float = np.inf,
) -> Iterator[Float[np.ndarray, "row dim"]]:
    """The masked rows of the records at `indices`, float32, one at a time.

    Raises ValueError where a matrix has other rows than the mask, or no columns; where a masked row is not finite; and
    where an element lies beyond `farthest`.
    """
    everything = bool(mask.all())
    for index in indices:
        with np.errstate(over="ignore"):  # beyond float32 is infinity, refused below
            matrix = np.asarray(trajectory[int(index)], dtype=np.float32)
        if matrix.ndim != 2 or matrix.shape[1] == 0:
            raise ValueError(f"a record has shape {matrix.shape}; needed is an output embedding, [vocab, dim].")
        if len(mask) != len(matrix):
            raise ValueError(
                f"the targets have {len(mask)} entries; the output embedding at step {trajectory.steps[index]} has "
                f"{len(matrix)} rows. Give targets over all rows and a mask that leaves out padding."
            )
        matrix = matrix if everything else matrix[mask]
        lowest, highest = float(matrix.min()), float(matrix.max())  # NaN where one is
        if not np.isfinite(lowest + highest):
            raise ValueError(
                f"the output embedding at step {trajectory.steps[index]} holds NaN or infinity "
                "(or more than float32 does); leave that record out, or end the run before it diverged."
            )
        if max(-lowest, highest) > farthest:
            raise ValueError(
                f"the output embedding at step {trajectory.steps[index]} reaches {max(-lowest, highest):.2g}, more "
                f"than {FARTHEST:g} times what the first and the last record do; leave that record out."
            )
        yield matrix


def unit_scale(
    first: Matrix,
    last: Matrix,
    *,
    ids: Int[np.ndarray, "row"] | None = None,
) -> np.float32:
    """The power of two that brings the largest element of `last` - `first` near 1: squares stay within float32.

    Over the rows of `ids` (None: all). A product with it is exact, and no progress, lead or p depends on it. 1 where
    nothing moved.

    Raises ValueError where all rows moved alike, up to rounding: what moves probabilities is their difference.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        change = Change(last, first=first, ids=ids)
        largest, centred = (max(float(np.abs(b).max()) for _, b in of) for of in (change.moved(), change.blocks()))
    if largest == 0.0:
        return np.float32(1.0)
    rounding = np.finfo(np.float32).eps * max(farthest_element(first, ids), farthest_element(last, ids))
    if centred <= rounding:
        raise ValueError(
            "the first and the last record are the same up to one shift of all rows and rounding, so nothing moved; "
            "check that they come from different checkpoints."
        )
    # 2^-126 ... 2^126: the powers that are normal float32 numbers
    return np.float32(2.0 ** np.clip(-np.floor(np.log2(largest)), -126, 126))
