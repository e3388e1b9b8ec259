"""The labellings that a run is measured with: the targets, their ranks, and the draws of every null, as columns.

A null must live where frequency lives. Labellings whose random part lies outside the column space of the change lead by
nearly one number, and a test against them has no size. So each null here moves the targets' own coefficients in the
singular basis of D(T); what lies outside of it only gets a random sign.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.random import Generator

from trainhooks.lead.change import Rows
from trainhooks.lead.labellings import (
    Coordinates,
    SingularBasis,
    block_rotations,
    permuted_labellings,
    sign_flips,
    space_rotations,
    unit_labelling,
)
from trainhooks.lead.ranks import mean_ranks

SIGN_FLIPS, BLOCKS, SPACE = "sign flips", "block rotations", "random directions of the change"
TWINS = {SIGN_FLIPS: sign_flips, BLOCKS: block_rotations, SPACE: space_rotations}
NULLS = tuple(TWINS)
"""The nulls whose largest p counts."""
PERMUTATIONS = "permutations"
DRAWS, BIN_DRAWS = 99, 19
SIGNS = np.array([-1.0, 1.0])


@dataclass(frozen=True)
class Twins:
    """Where one labelling stands among the columns, and the draws of each null made from it."""

    column: int
    groups: Mapping[str, slice]

    @classmethod
    def from_column(cls, column: int, *, draws: int) -> Twins:
        """A labelling at `column`, its draws behind it, null by null."""
        starts = [column + 1 + index * draws for index in range(len(NULLS) + 1)]
        return cls(column, {name: slice(*span) for name, span in zip(NULLS, pairwise(starts), strict=True)})

    @property
    def stop(self) -> int:
        """The first column behind them."""
        stop: int = max(span.stop for span in self.groups.values())
        return stop


@dataclass(frozen=True)
class Columns:
    """Which columns hold what, of `rows` rows with `draws` draws a null.

    Column 0 is the targets'; behind their twins come the permuted targets, those permuted within bins of id (by the
    number of bins), and the targets' ranks with twins of their own.
    """

    rows: int
    draws: int
    targets: Twins
    permutations: slice
    bins: Mapping[int, slice]
    ranks: Twins

    @classmethod
    def of(cls, rows: int, *, draws: int = DRAWS) -> Columns:
        """The order of columns, which rows and draws decide."""
        targets = Twins.from_column(0, draws=draws)
        permutations = slice(targets.stop, targets.stop + draws)
        counts = bin_counts(rows)
        starts = [permutations.stop + index * BIN_DRAWS for index in range(len(counts) + 1)]
        bins = {count: slice(*span) for count, span in zip(counts, pairwise(starts), strict=True)}
        return cls(rows, draws, targets, permutations, bins, Twins.from_column(starts[-1], draws=draws))

    @property
    def groups(self) -> Mapping[str, slice]:
        """The targets' nulls, the permuted targets last."""
        return {**self.targets.groups, PERMUTATIONS: self.permutations}


def bin_counts(rows: int) -> list[int]:
    """Powers of 4 from 4 on that leave four rows or more to a bin."""
    return [4**k for k in range(1, 9) if 4 ** (k + 1) <= rows]


def twins_of(
    labelling: Float[np.ndarray, "row"],
    *,
    change: Rows,
    basis: SingularBasis,
    draws: int,
    rng: Generator,
) -> Float[np.ndarray, "row column"]:
    """A labelling and the draws of each null, in the order of `Twins`; float32.

    `change` is the whole centred change [row, dim], `basis` its singular basis. Each draw has the labelling's norm,
    leading coefficient and size outside the column space.
    """
    columns = np.empty((len(labelling), Twins.from_column(0, draws=draws).stop), dtype=np.float32)
    _fill_twins(columns, labelling, change=change, basis=basis, draws=draws, rng=rng)
    return columns


def _fill_twins(
    columns: np.ndarray, labelling: np.ndarray, *, change: Rows, basis: SingularBasis, draws: int, rng: Generator
) -> None:
    at = Coordinates.of(labelling, change=change, basis=basis)
    drawn = [(draw(at.coefficients, draws=draws, rng=rng), rng.choice(SIGNS, size=draws)) for draw in TWINS.values()]
    coefficients, signs = (np.concatenate(part, axis=-1) for part in zip(*drawn, strict=True))
    columns[:, 0] = labelling
    for where, within in basis.combined_blocks(change, coefficients):
        columns[where, 1:] = within
        columns[where, 1:] += at.outside[where, None].astype(np.float32) * signs.astype(np.float32)


def draw_labellings(
    targets: Float[np.ndarray, "row"],
    *,
    change: Rows,
    basis: SingularBasis,
    draws: int,
    seed: int,
) -> Float[np.ndarray, "row column"]:
    """All columns, in the order of `Columns.of`; float32. The same seed gives the same draws."""
    rng = np.random.default_rng(seed)
    labelling, ranks = unit_labelling(targets), unit_labelling(mean_ranks(targets))
    at = Columns.of(len(labelling), draws=draws)
    drawn = np.empty((len(labelling), at.ranks.stop), dtype=np.float32)
    settings: dict[str, Any] = {"change": change, "basis": basis, "draws": draws, "rng": rng}
    _fill_twins(drawn[:, : at.targets.stop], labelling, **settings)
    drawn[:, at.permutations] = permuted_labellings(labelling, draws=draws, rng=rng)
    for count, span in at.bins.items():
        drawn[:, span] = permuted_labellings(labelling, draws=BIN_DRAWS, rng=rng, bins=count)
    _fill_twins(drawn[:, at.ranks.column :], ranks, **settings)
    return drawn
