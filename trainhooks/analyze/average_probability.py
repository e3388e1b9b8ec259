"""The average output probability of a model on a given text, from every position of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64, Shaped
from torch import Tensor, nn

from trainhooks.model import OutputEmbedding, find_output_embedding
from trainhooks.model.hooks import watch_head_input
from trainhooks.probe.probability import ProbabilitySums, probability_sums, split_half_reliability


@dataclass(frozen=True)
class AverageProbabilityResult:
    """alpha_w, the mean of P(w|x) over all positions of a text, and what it rests on.

    `alpha` [vocab] sums to 1 but for rounding, `log_alpha` [vocab] is its logarithm in nats without underflow (the
    probe's target is its negative), `mean_hidden` [dim] the mean state mu that enters the head. `positions` of
    `sequences` were averaged, `excluded` were not finite and left out; `reliability` is the correlation of log alpha
    between even and odd sequences (see `split_half_reliability`: not Spearman-Brown corrected, NaN for one sequence).
    """

    alpha: Float64[Tensor, "vocab"]
    log_alpha: Float64[Tensor, "vocab"]
    mean_hidden: Float64[Tensor, "dim"]
    positions: int
    sequences: int
    excluded: int
    reliability: float


@torch.no_grad()
def average_probability(
    model: nn.Module, batches: Iterable[Tensor | Mapping[str, Any]], *, head: str | None = None
) -> AverageProbabilityResult:
    """alpha_w of any causal LM over every position of every batch, in evaluation mode.

    A batch is a tensor of token ids [sequence, position], given to the model as its first argument, or a mapping
    given as keyword arguments; the positions where its `attention_mask` is 0 are left out. Softmax in float32, sums
    in float64, memory as `probability_sums`. `head` names the output embedding where it cannot be found. The model
    comes back as it was: parameters untouched, each module in the mode it had.

    It is softmax(E h + b) with h the input of the head: a logit scale or soft cap behind the head is not in it.

    Raises ValueError where the head's module is not called (a fused loss, or a model compiled before: pass the
    uncompiled one), where the mask does not fit the head's input, and where the batches hold no finite position.

    Source: Cho et al. 2025, arXiv 2406.01468.
    """
    found = find_output_embedding(model, name=head)
    even = odd = probability_sums(found.weight, found.weight.new_empty(0, found.weight.shape[1]))
    sequences = 0
    for batch in batches:
        hidden, keep = _hidden_states(model, batch, head=found)
        halves = [_sums(found, hidden[start::2], keep=keep[start::2]) for start in (0, 1)]
        first, second = halves if sequences % 2 == 0 else halves[::-1]
        even, odd = even + first, odd + second
        sequences += len(hidden)
    total = even + odd
    if not int(total.positions):
        raise ValueError(
            f"{sequences} sequences hold no position with a finite softmax ({int(total.excluded)} were left out): "
            "check the batches, and the weights for NaN."
        )
    return AverageProbabilityResult(
        alpha=total.log_alpha.exp(),
        log_alpha=total.log_alpha,
        mean_hidden=total.mean_hidden,
        positions=int(total.positions),
        sequences=sequences,
        excluded=int(total.excluded),
        reliability=float(split_half_reliability(even, odd)),
    )


def _sums(head: OutputEmbedding, hidden: Tensor, *, keep: Tensor) -> ProbabilitySums:
    return probability_sums(head.matrix, hidden[keep], bias=head.bias)


def _hidden_states(
    model: nn.Module, batch: Tensor | Mapping[str, Any], *, head: OutputEmbedding
) -> tuple[Shaped[Tensor, "sequence position dim"], Shaped[Tensor, "sequence position"]]:
    """What enters the head for one batch, and which positions count."""
    passes: list[Tensor] = []
    device = head.weight.device
    handle = watch_head_input(head.module, passes.append, training_only=False)
    try:
        with _evaluating(model):
            if isinstance(batch, Tensor):
                model(batch.to(device))
            else:
                model(**{name: v.to(device) if isinstance(v, Tensor) else v for name, v in batch.items()})
    finally:
        handle.remove()
    if not passes:
        raise ValueError(
            f"the head's module ({head.name}) was not called in the forward pass. Pass the uncompiled model, "
            "without a fused loss (no labels in the batch), or name another head."
        )
    hidden = torch.cat([p.reshape(-1, *p.shape[-2:]) for p in passes], dim=1)
    mask = None if isinstance(batch, Tensor) else batch.get("attention_mask")
    if mask is None:
        return hidden, torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
    if mask.shape != hidden.shape[:2]:
        raise ValueError(
            f"attention_mask is {tuple(mask.shape)}; the head saw {tuple(hidden.shape[:2])} positions. Give a mask "
            "[sequence, position], and let the model form all logits (no `logits_to_keep`)."
        )
    return hidden, mask.to(hidden.device).bool()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; each module gets its own mode back, frozen parts included."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
