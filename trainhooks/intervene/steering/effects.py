"""What moving one logit does to the whole distribution, exactly, from a few numbers a position."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from trainhooks.intervene.contexts import Contexts
from trainhooks.intervene.outputs import Outputs
from trainhooks.intervene.steering.scales import log_odds


@dataclass(frozen=True)
class Effects:
    """One entry for each edit [edit].

    `ratio` mean P' / mean P; `spread` the standard deviation over positions of log(P'/P), nats; `js` the Jensen-Shannon
    divergence from the old distribution, nats in [0, log 2], of which `js_rest` is the part of all other tokens (they
    keep their shares of one another); `agreement` the share of positions with the same most probable token;
    `loss_change` in nats a label. `sums` [edit, document] and `old_sums` [document] of P' and P are what intervals over
    documents are made of.
    """

    ratio: Float64[Tensor, "edit"]
    spread: Float64[Tensor, "edit"]
    js: Float64[Tensor, "edit"]
    js_rest: Float64[Tensor, "edit"]
    agreement: Float64[Tensor, "edit"]
    loss_change: Float64[Tensor, "edit"]
    sums: Float64[Tensor, "edit document"]
    old_sums: Float64[Tensor, "document"]


def effects(
    token: int,
    moved: Float64[Tensor, "edit position"],
    *,
    log_p: Float64[Tensor, "position"],
    contexts: Contexts,
    before: Outputs,
) -> Effects:
    """Effects of adding `moved` to the logit of `token`, each row an edit of its own; exact, no sampling.

    P' is the sigmoid of log(P/(1-P)) + s, and every other token's P' is P (1 - P'_w) / (1 - P_w). A row that is NaN
    (infeasible) gives NaN.
    """
    odds = log_odds(log_p)
    new = torch.nn.functional.logsigmoid(odds + moved)
    new_rest, rest = torch.nn.functional.logsigmoid(-(odds + moved)), torch.nn.functional.logsigmoid(-odds)
    p, old = new.exp(), log_p.exp()
    js_own, js_rest = _js_part(new, log_p), _js_part(new_rest, rest)
    scaled = new_rest - rest  # of every other token's log-probability
    is_label = contexts.labels == token
    loss_change = -torch.where(is_label, new - log_p, scaled).mean(1)
    is_best = before.best_token == token
    other = torch.where(is_best, before.second, before.best) + scaled
    same = ((new > other) == is_best).double().mean(1)
    owner = contexts.document
    sums = torch.zeros(len(moved), contexts.documents, dtype=torch.float64).index_add_(1, owner, p)
    old_sums = torch.zeros(contexts.documents, dtype=torch.float64).index_add_(0, owner, old)
    return Effects(
        ratio=p.mean(1) / old.mean(),
        spread=(new - log_p).std(1, correction=0),
        js=(js_own + js_rest).mean(1),
        js_rest=js_rest.mean(1),
        agreement=torch.where(moved.isfinite().all(1), same, torch.nan),
        loss_change=loss_change,
        sums=sums,
        old_sums=old_sums,
    )


def _js_part(new: Tensor, old: Tensor) -> Tensor:
    """p' log(p'/m) / 2 + p log(p/m) / 2 of one outcome, m the mean of both; from logarithms."""
    middle = torch.logaddexp(new, old.expand_as(new)) - np.log(2.0)
    part: Tensor = (new.exp() * (new - middle) + old.exp() * (old - middle)) / 2
    return part
