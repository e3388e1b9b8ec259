"""Through which channel frequency enters the logits: the last norm's bias, the mean state, or the head's bias."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from trainhooks.numerics.rank_correlation import spearman
from trainhooks.probe.baselines import beside
from trainhooks.probe.fit import fit_probe


@dataclass(frozen=True)
class Channels:
    """Rank correlations with -y, in [-1, 1], and held-out R^2 of probes; None where the model lacks the part.

    `norm_bias` is E.beta, `mean_hidden` E.mu, `rest` E.(mu - beta), `head_bias` b. All but b are linear in E, so a
    probe of E holds them; only b lies outside, and `joint_r2` = R^2[E, b] says what it adds to `embedding_r2`.
    """

    embedding_r2: Float64[Tensor, ""]
    norm_bias: Float64[Tensor, ""] | None
    mean_hidden: Float64[Tensor, ""] | None
    rest: Float64[Tensor, ""] | None
    head_bias: Float64[Tensor, ""] | None
    head_bias_r2: Float64[Tensor, ""] | None
    joint_r2: Float64[Tensor, ""] | None


@torch.no_grad()
def channels(
    embedding: Float[Tensor, "vocab dim"],
    y: Float[Tensor, "vocab"],
    *,
    mask: Bool[Tensor, "vocab"] | None = None,
    norm_bias: Float[Tensor, "norm_dim"] | None = None,
    mean_hidden: Float[Tensor, "hidden_dim"] | None = None,
    head_bias: Float[Tensor, "bias"] | None = None,
    folds: int = 5,
) -> Channels:
    """The channels of one output embedding; `mean_hidden` mu is the mean state that enters the head.

    Correlations are over the mask and NaN for a constant channel (a zero bias). R^2 are held-out. Errors as
    `fit_probe`. After Kobayashi et al. 2023 (Findings of ACL), who find frequency in the head's bias.
    """
    _check(embedding, norm_bias=norm_bias, mean_hidden=mean_hidden, head_bias=head_bias)
    embedding = embedding.detach()
    device = embedding.device
    keep = torch.ones(len(embedding), dtype=torch.bool, device=device) if mask is None else mask.to(device)
    alone = fit_probe(embedding, y, mask=keep, folds=folds)
    down = -y.to(device)[keep].double()

    def linear(direction: Tensor | None) -> Tensor | None:
        if direction is None:
            return None
        return spearman(embedding[keep].double() @ direction.detach().to(device).double(), down)

    rest = None if norm_bias is None or mean_hidden is None else mean_hidden - norm_bias
    bias = None if head_bias is None else head_bias.detach().to(device)[:, None]
    joint = None if bias is None else fit_probe(beside(embedding, bias, mask=keep), y, mask=keep, folds=folds)
    return Channels(
        embedding_r2=alone.heldout_r2,
        norm_bias=linear(norm_bias),
        mean_hidden=linear(mean_hidden),
        rest=linear(rest),
        head_bias=None if bias is None else spearman(bias[keep, 0].double(), down),
        head_bias_r2=None if bias is None else fit_probe(bias, y, mask=keep, folds=folds).heldout_r2,
        joint_r2=None if joint is None else joint.heldout_r2,
    )


def _check(embedding: Tensor, *, head_bias: Tensor | None, **directions: Tensor | None) -> None:
    """Raise ValueError for parts of another length."""
    vocab, dim = embedding.shape
    for name, part, size in [(name, part, dim) for name, part in directions.items()] + [
        ("head_bias", head_bias, vocab)
    ]:
        if part is not None and part.shape != (size,):
            raise ValueError(
                f"{name} has shape {tuple(part.shape)}; the output embedding, {vocab} x {dim}, needs [{size}]."
            )
