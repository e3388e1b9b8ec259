"""An output embedding that moves as in training: AdamW on the cross-entropy of drawn tokens, contexts held still."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

CONTEXTS, BATCH = 512, 64


def zipf_counts(vocab: int) -> np.ndarray:
    """Counts of a corpus, ids in no order."""
    return np.random.default_rng(0).permutation((1e8 / np.arange(1, vocab + 1)).astype(np.int64) + 1)


@torch.no_grad()
def trained_heads(counts: np.ndarray, *, dim: int, learning_rate: float, steps: int) -> Iterator[Tensor]:
    """The same tensor before the first update and after each; its elements begin with a deviation of 0.02."""
    generator = torch.Generator().manual_seed(0)
    head = torch.empty(len(counts), dim).normal_(0, 0.02, generator=generator)
    contexts = torch.nn.functional.normalize(torch.randn(CONTEXTS, dim, generator=generator)) * dim**0.5
    base, group = torch.from_numpy(counts).float().log(), torch.arange(len(counts)) // 64
    tilt = torch.randn(CONTEXTS, int(group.max()) + 1, generator=generator)
    first, second = torch.zeros_like(head), torch.zeros_like(head)
    yield head
    for step in range(1, steps + 1):
        context = torch.randint(CONTEXTS, (BATCH,), generator=generator)
        next_token = torch.multinomial(torch.softmax(base + tilt[context][:, group], 1), 1, generator=generator)
        hidden = contexts[context] + 0.3 * torch.randn(BATCH, dim, generator=generator)
        error = torch.softmax(hidden @ head.T, 1).scatter_add_(1, next_token, torch.full((BATCH, 1), -1.0))
        gradient = (error / BATCH).T @ hidden
        first.lerp_(gradient, 0.1)
        second.mul_(0.95).addcmul_(gradient, gradient, value=0.05)
        size = (second / (1 - 0.95**step)).sqrt_().add_(1e-8)
        head.mul_(1 - 0.1 * learning_rate).addcdiv_(first / (1 - 0.9**step), size, value=-learning_rate)
        yield head
