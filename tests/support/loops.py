"""A language model of a few thousand parameters and the loop that trains it, for tests."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

VOCAB, DIM, CONTEXT = 60, 8, 16


class TinyLM(nn.Module):
    """Embedding, two blocks of one linear map each, norm, head with bias."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embed = nn.Embedding(VOCAB, DIM)
            self.layers = nn.ModuleList([nn.Linear(DIM, DIM) for _ in range(2)])
            self.norm = nn.LayerNorm(DIM)
            self.lm_head = nn.Linear(DIM, VOCAB)

    def forward(self, ids):
        hidden = self.embed(ids)
        for layer in self.layers:
            hidden = hidden + torch.tanh(layer(hidden))
        return self.lm_head(self.norm(hidden))


def batches(steps: int, *, seed: int = 1) -> torch.Tensor:
    """Token windows [steps, 4, CONTEXT + 1] with a skewed distribution."""
    generator = torch.Generator().manual_seed(seed)
    weights = 1.0 / torch.arange(1, VOCAB + 1)
    return torch.multinomial(weights, steps * 4 * (CONTEXT + 1), replacement=True, generator=generator).view(
        steps, 4, CONTEXT + 1
    )


def train(model, data, recorder=None, *, optimizer=None, first=0):
    """Plain training; returns the losses."""
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for ids in data[first:]:
        if recorder is not None:
            recorder.begin_step(ids[:, 1:])
        loss = nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        if recorder is not None:
            recorder.before_update()
        optimizer.step()
        optimizer.zero_grad()
        if recorder is not None:
            recorder.after_update(loss=loss, learning_rate=1e-2)
        losses.append(loss.item())
    return losses


COUNTS = np.bincount(batches(200).numpy().ravel(), minlength=VOCAB)
