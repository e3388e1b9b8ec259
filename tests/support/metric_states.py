"""States as a recorder would show them to a metric."""

from dataclasses import replace

import torch
from naive_metrics import draw
from torch import nn

from trainhooks.metrics.base import State
from trainhooks.model import OutputEmbedding
from trainhooks.numerics.sketch import Sketcher


class Tiny(nn.Module):
    """An embedding, one block, a norm and a head: enough to have groups."""

    def __init__(self, vocab: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab, dim)
        self.block = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocab, bias=False)
        with torch.no_grad():
            for seed, parameter in enumerate(self.parameters()):
                parameter.copy_(draw(*parameter.shape, seed=seed))

    def groups(self) -> dict[str, list[tuple[str, torch.Tensor]]]:
        parts = {"embedding": self.embedding, "block": self.block, "norm": self.norm, "head": self.head}
        named = {part: [(f"{part}.{n}", p) for n, p in module.named_parameters()] for part, module in parts.items()}
        return {"whole": [pair for members in named.values() for pair in members], **named}


def make_state(*, vocab: int = 40, dim: int = 6, norm: bool = False, model: Tiny | None = None, step: int = 0) -> State:
    model = Tiny(vocab, dim) if model is None else model
    head = OutputEmbedding(
        weight=model.head.weight,
        name="head.weight",
        module=model.head,
        norm_weight=model.norm.weight if norm else None,
        norm_bias=model.norm.bias if norm else None,
    )
    groups = model.groups()
    return State(
        step=step,
        model=model,
        head=head,
        groups={group: [tensor for _, tensor in members] for group, members in groups.items()},
        sketch=Sketcher(groups).sketch(groups),
    )


def after(previous: State, *, initial: State, model: Tiny, step: int, learning_rate_sum: float | None = None) -> State:
    """The next record of the same model, with what a recorder remembers; heads were copied into the states."""
    state = make_state(model=model, step=step)
    return replace(
        state,
        initial_head=initial.initial_head,
        previous_head=previous.previous_head,
        initial_sketch=initial.sketch,
        previous_sketch=previous.sketch,
        learning_rate_sum=learning_rate_sum,
    )
