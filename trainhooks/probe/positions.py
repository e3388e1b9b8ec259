"""Which positions stand for an update's text: a bounded sample of hidden states, the same on every run."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from trainhooks.numerics.hashing import splitmix64

POSITIONS_PER_SEQUENCE = 128
MAX_POSITIONS = 1024


class HiddenSample:
    """At most `max_positions` rows of the hidden states added so far, from as many sequences as there are.

    Positions in one sequence are dependent, so few of many sequences say more than many of few (64 positions of one
    sequence gave the slope a cosine of 0.59 to that of 40,960; 1,024 of 8 sequences 0.91; 1,024 of 64 sequences
    0.98). Each sequence's positions are ordered by a splitmix64 hash of the sequence's number and the position; all
    first choices come before all second ones, up to `positions_per_sequence`. 64 sequences give 16 each, 8 give 128.
    The choice depends on shapes alone: not on torch's generators, nor on how sequences fall into micro-batches.

    `rows` [kept, dim] are copies in float32 (float64 stays), `sequence` [kept] their sequences' numbers, on the CPU;
    `sequences` how many were seen. Raises ValueError for limits below 1.
    """

    def __init__(
        self, *, positions_per_sequence: int = POSITIONS_PER_SEQUENCE, max_positions: int = MAX_POSITIONS
    ) -> None:
        for name, limit in (("positions_per_sequence", positions_per_sequence), ("max_positions", max_positions)):
            if limit < 1:
                raise ValueError(f"{name} is {limit}; needed is 1 or more, or nothing is sampled.")
        self._per_sequence, self._most = positions_per_sequence, max_positions
        self.clear()

    def clear(self) -> None:
        """Forget all rows and start again at sequence 0."""
        self.rows: Tensor | None = None
        self.sequence = torch.empty(0, dtype=torch.int64)
        self.sequences = 0
        self._choice = torch.empty(0, dtype=torch.int64)

    @torch.no_grad()
    def add(self, hidden: Float[Tensor, "*sequences position dim"]) -> None:
        """Take what is needed of a pass [..., position, dim]; two axes are one sequence. Never waits for the device."""
        hidden = hidden.detach()
        hidden = hidden.reshape(-1, *hidden.shape[-2:])
        chosen = choose_positions(
            first=self.sequences, sequences=len(hidden), length=hidden.shape[1], count=self._per_sequence
        )
        width = chosen.shape[1]
        added = torch.arange(self.sequences, self.sequences + len(hidden)).repeat_interleave(width)
        choice = torch.cat([self._choice, torch.arange(width).repeat(len(hidden))])
        sequence = torch.cat([self.sequence, added])
        kept = _first(choice, sequence, count=self._most)
        old, new = kept[kept < len(self.sequence)], kept[kept >= len(self.sequence)] - len(self.sequence)
        where = (added[new] - self.sequences).to(hidden.device, non_blocking=True)
        rows = hidden[where, chosen.flatten()[new].to(hidden.device, non_blocking=True)]
        rows = rows if rows.dtype == torch.float64 else rows.float()
        if self.rows is not None:
            rows = torch.cat([self.rows[old.to(rows.device, non_blocking=True)], rows])
        self.rows, self.sequence, self._choice = rows, sequence[kept], choice[kept]
        self.sequences += len(hidden)


def choose_positions(*, first: int, sequences: int, length: int, count: int) -> Int64[Tensor, "sequence chosen"]:
    """Up to `count` of the positions 0 ... length - 1 for each sequence first, first + 1 ..., most wanted first."""
    seeds = splitmix64(torch.arange(first, first + sequences))
    hashes = splitmix64(seeds[:, None] + torch.arange(length))
    return hashes.topk(min(count, length), dim=1, largest=False).indices


def _first(choice: Tensor, sequence: Tensor, *, count: int) -> Tensor:
    """Indices, ascending, of the first `count` by choice, and by the sequence's hash within one choice."""
    order = splitmix64(sequence).argsort(stable=True)
    order = order[choice[order].argsort(stable=True)]
    return order[:count].sort().values
