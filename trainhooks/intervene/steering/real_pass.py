"""An edit as a model: made, run forward for real, and counted beside what was predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from trainhooks.intervene.contexts import Contexts
from trainhooks.intervene.outputs import outputs, token_log_p
from trainhooks.intervene.steering.directions import EditDirection
from trainhooks.intervene.target import Target


@dataclass(frozen=True)
class RealPass:
    """One edit checked by the edited model's own forward pass on the test documents.

    `closed_form` is what `steer` reports, `untied` the real pass where only the output side is edited, `tied` the
    real pass where a tied input embedding takes the edit too (None where there is none to take it): what then differs
    comes through the input side.
    """

    token: int
    direction: str
    requested: float
    closed_form: float
    untied: float
    tied: float | None


def apply_edit(
    target: Target, direction: EditDirection, *, tokens: Sequence[int], scales: Sequence[float], untie: bool = True
) -> Target:
    """A copy of the model with c u added to each token's row, or c to its bias for the plain logit bias.

    Raises ValueError for a scale that is not finite (an infeasible edit), and a token without a row.
    """
    added = torch.tensor(list(scales), dtype=torch.float64)
    if not bool(added.isfinite().all()):
        raise ValueError(f"{direction.name} has no scale for this ratio (infeasible): ask for one nearer to 1.")
    wrong = [token for token in tokens if not 0 <= token < target.vocab]
    if wrong:
        raise ValueError(f"got token {wrong[0]}; the output embedding has rows 0 to {target.vocab - 1}.")
    rows = torch.tensor(list(tokens))
    weight, bias = target.weight.clone(), target.bias
    if direction.vector is None:
        bias = torch.zeros(target.vocab) if bias is None else bias.clone()
        bias[rows] += added.to(bias.dtype)
    else:
        weight[rows] += torch.outer(added, direction.vector).to(weight.dtype)
    return target.with_head(weight, bias=bias, untie=untie)


def mean_probability(target: Target, contexts: Contexts, tokens: Sequence[int]) -> Float64[Tensor, "token"]:
    """Mean P(w|x) over contexts that this very model made."""
    before = outputs(target.weight, target.bias, contexts)
    return token_log_p(target.weight, target.bias, contexts, before, list(tokens)).exp().mean(1)
