"""A model whose code is known: some dimensions carry the slope, some nothing, and the rest little."""

import torch


def planted(*, vocab=400, dim=24, positions=320, unused=6, seed=0):
    """Weight, hidden states, labels, documents: the first `unused` dimensions are the same for all tokens."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(vocab, dim, generator=generator)
    weight *= torch.linspace(0.02, 1, dim)
    weight[:, :unused] = 0.7
    hidden = 0.6 * torch.randn(positions, dim, generator=generator) + torch.linspace(0.1, 0.9, dim)
    p = torch.softmax(hidden @ weight.T, 1)
    labels = torch.multinomial(p, 1, generator=generator)[:, 0]
    document = torch.arange(positions) // 16
    return weight, hidden, labels, document
