"""What the unmodified model says at every context, from one pass over vocabulary-sized logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from trainhooks.intervene.contexts import Contexts, blocks

_GROUPS = 64  # documents share sums beyond this many


@dataclass(frozen=True)
class Outputs:
    """The reference distribution at N positions, without its N x V numbers.

    `log_normaliser` log of the softmax's sum, `label_log_p` of the label, `best` and `second` the two largest
    log-probabilities, `best_token` whose the largest is (all [position], nats). `group_sums` [group, vocab] are sums of
    P(w|x) over groups of documents, `group_positions` [group] how many positions each has.
    """

    log_normaliser: Float64[Tensor, "position"]
    label_log_p: Float64[Tensor, "position"]
    best: Float64[Tensor, "position"]
    second: Float64[Tensor, "position"]
    best_token: Int64[Tensor, "position"]
    group_sums: Float64[Tensor, "group vocab"]
    group_positions: Float64[Tensor, "group"]

    @property
    def alpha(self) -> Float64[Tensor, "vocab"]:
        """The mean of P(w|x) over the positions."""
        return self.group_sums.sum(0) / self.group_positions.sum()


@torch.no_grad()
def outputs(weight: Tensor, bias: Tensor | None, contexts: Contexts) -> Outputs:
    """One pass of softmax(E h + b) over all positions, in float32, in blocks (`blocks`); sums in float64.

    `weight` float32 [vocab, dim], `bias` [vocab] or None. A P(w|x) below 1e-38 counts as 0. One token only has no
    second: -inf.
    """
    group = contexts.document * min(_GROUPS, contexts.documents) // contexts.documents
    groups = int(group[-1]) + 1
    sums = torch.zeros(groups, len(weight), dtype=torch.float64)
    columns: list[tuple[Tensor, ...]] = []
    for block in blocks(len(contexts), len(weight)):
        logits = contexts.hidden[block] @ weight.T
        if bias is not None:
            logits += bias
        normaliser = logits.logsumexp(1)
        label = logits.gather(1, contexts.labels[block, None])[:, 0]
        best, token = logits.max(1)
        own = torch.nn.functional.one_hot(group[block], groups).float()
        logits.scatter_(1, token[:, None], -torch.inf)
        columns.append((normaliser, label - normaliser, best - normaliser, logits.amax(1) - normaliser, token))
        logits.scatter_(1, token[:, None], best[:, None])
        sums += own.T @ logits.sub_(normaliser[:, None]).exp_()
    joined = [torch.cat(column) for column in zip(*columns, strict=True)]
    normaliser, label, best, second = (column.double() for column in joined[:4])
    return Outputs(normaliser, label, best, second, joined[4], sums, torch.bincount(group, minlength=groups).double())


def token_log_p(
    weight: Tensor, bias: Tensor | None, contexts: Contexts, found: Outputs, tokens: list[int]
) -> Float64[Tensor, "token position"]:
    """log P(w|x) of some tokens at every position, in nats; at most -1e-12, so that a sure token still has odds."""
    logits = contexts.hidden @ weight[tokens].T
    if bias is not None:
        logits += bias[tokens]
    return (logits.double().T - found.log_normaliser).clamp_max(-1e-12)
