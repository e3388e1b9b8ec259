"""Tokens by how common they are: decades of rank, so that the commonest stand apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor


@dataclass(frozen=True)
class FrequencyBins:
    """`rank` [vocab] from 1, the commonest; `edges` the last rank of each bin (10, 100, ... and the last)."""

    rank: Int64[Tensor, "vocab"]
    edges: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.edges)

    def of(self, token: int) -> int:
        """The bin of a token, from 0, the commonest."""
        rank = int(self.rank[token])
        return next(number for number, edge in enumerate(self.edges) if rank <= edge)

    def label(self, bin_: int) -> str:
        """The bin's ranks in words: "rank 1-10"."""
        first = 1 if bin_ == 0 else self.edges[bin_ - 1] + 1
        return f"rank {first}-{self.edges[bin_]}"

    def pick(self, count: int) -> list[int]:
        """`count` tokens spread over the bins, the commonest of all first; evenly by rank inside a bin.

        Fewer where the vocabulary has fewer.
        """
        by_rank = self.rank.argsort()
        picked: list[int] = []
        for number, edge in enumerate(self.edges):
            first = 0 if number == 0 else self.edges[number - 1]
            share = -(-(count - len(picked)) // (len(self.edges) - number))
            ranks = torch.linspace(first, edge - 1, min(share, edge - first) + 1, dtype=torch.float64)[:-1]
            picked += by_rank[ranks.long()].tolist()
        return picked


def frequency_bins(frequency: Float64[Tensor, "vocab"]) -> FrequencyBins:
    """Bins by decade of rank: 1-10, 11-100, ... up to the last token.

    Ties are ranked by id. A frequency is any number that grows with how common a token is (counts, mean
    probabilities). Raises ValueError where none is positive, or one is negative or not finite.
    """
    if not bool((frequency.isfinite() & (frequency >= 0)).all()) or not bool((frequency > 0).any()):
        raise ValueError("frequencies must be finite, 0 or more, and some of them positive.")
    order = frequency.argsort(descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(1, len(order) + 1)
    edges = []
    edge = 10
    while edge < len(order):
        edges.append(edge)
        edge *= 10
    return FrequencyBins(rank, (*edges, len(order)))
