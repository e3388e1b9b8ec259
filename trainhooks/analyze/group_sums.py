"""A checkpoint's parameter groups beside the final state: norms, distances and sketches, each number read once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from trainhooks.analyze.distance_to_final import groups_to_final
from trainhooks.analyze.job import OpenedCheckpoint
from trainhooks.numerics.distances import PairSquares, PairSums
from trainhooks.numerics.sketch import Sketcher

HOST = torch.device("cpu")
AHEAD_BYTES = 1 << 30


class GroupFigures(NamedTuple):
    """The way to the final state by variable, norms and sketches."""

    to_final: Mapping[str, Tensor]
    norms: Float64[Tensor, "group"]
    sketch: Float[Tensor, "group sketch"]


class GroupSums:
    """Measures the groups of one checkpoint after another; it remembers the squares of the final state.

    `groups` are the names of each group's parameters. A parameter is read when it is its turn, and let go after it.
    """

    def __init__(self, groups: Mapping[str, tuple[str, ...]], *, sketch_size: int) -> None:
        self._names = list(dict.fromkeys(name for members in groups.values() for name in members))
        at = {name: index for index, name in enumerate(self._names)}
        self._members = [[at[name] for name in members] for members in groups.values()]
        nothing = torch.empty(0)  # a sketcher keeps names alone
        named = {group: [(name, nothing) for name in members] for group, members in groups.items()}
        self._sketcher = Sketcher(named, size=sketch_size)
        self._pair_sums = PairSums()
        self._final_squares: dict[tuple[str, bool], float] = {}

    def expect(self, opened: OpenedCheckpoint) -> None:
        """Have the parameters read ahead, up to 1 GiB, while something else is computed."""
        ahead = 0
        for name in self._names:
            ahead += opened.expect(name)
            if ahead > AHEAD_BYTES:
                return

    def measure(self, opened: OpenedCheckpoint, final: OpenedCheckpoint) -> GroupFigures:
        """One checkpoint's figures. Raises ValueError where a parameter has another shape than at the final step."""
        squares: dict[str, PairSquares] = {}
        runs = {name: self._runs(name, opened, final, squares=squares) for name in self._names}
        sketch = self._sketcher.sketch_slices(runs, device=HOST)
        sums = [[own.values, own.reference, own.apart] for own in (squares[name] for name in self._names)]
        by_name = torch.tensor(sums, dtype=torch.float64, device=HOST).reshape(-1, 3)
        by_group = torch.stack([by_name[held].sum(0) for held in self._members] or [by_name.new_zeros(0, 3)])
        now, then, apart = by_group.reshape(-1, 3).T
        return GroupFigures(groups_to_final(now, then, apart=apart), now.sqrt(), sketch)

    def _runs(
        self, name: str, opened: OpenedCheckpoint, final: OpenedCheckpoint, *, squares: dict[str, PairSquares]
    ) -> Iterator[tuple[int, Tensor]]:
        """A parameter's blocks for its sketch; `squares` gets its own after the last."""
        opened.expect(name)  # where it is long its end is on the way while its begin is worked on
        now, then = opened.parameter(name), final.parameter(name)
        if now.shape != then.shape:
            raise ValueError(f"{name} is {tuple(now.shape)}, at the final step {tuple(then.shape)}.")
        held = name, now.dtype == then.dtype == torch.float64
        own = squares[name] = PairSquares(self._final_squares.get(held))
        yield from self._pair_sums.blocks(now, then, squares=own)
        assert own.reference is not None
        self._final_squares[held] = own.reference
