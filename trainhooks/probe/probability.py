"""The average output probability of each token: the other target of the probe, from sums that add."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from trainhooks.numerics.products import exact_products
from trainhooks.numerics.rank_correlation import pearson

BLOCK_ELEMENTS = 1 << 23
"""Logits formed at once, 34 MB in float32; two more blocks of that size are needed beside them."""


@dataclass(frozen=True)
class ProbabilitySums:
    """Sums over positions; those of disjoint positions add with `+`.

    `log_sum` [vocab] is log(sum of P(w|x)), so that rare tokens do not underflow, -inf for none; `hidden_sum` [dim]
    the sum of hidden states. `positions` were counted, `excluded` were not finite and left out.
    """

    log_sum: Float64[Tensor, "vocab"]
    hidden_sum: Float64[Tensor, "dim"]
    positions: Float64[Tensor, ""]
    excluded: Float64[Tensor, ""]

    def __add__(self, other: ProbabilitySums) -> ProbabilitySums:
        """The sums over both sets of positions. Raises ValueError where vocabulary or width differ."""
        mine, others = (tuple(len(part) for part in (s.log_sum, s.hidden_sum)) for s in (self, other))
        if mine != others:
            raise ValueError(f"cannot add sums of [vocab, dim] = {mine} and {others}: they belong to two models.")
        return ProbabilitySums(
            log_sum=torch.logaddexp(self.log_sum, other.log_sum),
            hidden_sum=self.hidden_sum + other.hidden_sum,
            positions=self.positions + other.positions,
            excluded=self.excluded + other.excluded,
        )

    @property
    def log_alpha(self) -> Float64[Tensor, "vocab"]:
        """log alpha_w [vocab] in nats, at most 0; -inf where every P(w|x) is 0, NaN without positions."""
        return self.log_sum - self.positions.log()

    @property
    def mean_hidden(self) -> Float64[Tensor, "dim"]:
        """mu, the mean state that enters the head [dim]; NaN without positions."""
        return self.hidden_sum / self.positions


@torch.no_grad()
def probability_sums(
    embedding: Float[Tensor, "vocab dim"],
    hidden: Float[Tensor, "position dim"],
    *,
    bias: Float[Tensor, "vocab"] | None = None,
    block_elements: int = BLOCK_ELEMENTS,
) -> ProbabilitySums:
    """Sums of P(w|x) = softmax(E h_x + b)_w over the positions, and of h_x.

    Products and softmax run in float32 (float64 where E or h has it), in blocks of positions with `block_elements`
    logits each: some 100 MB by default, and a float32 copy of E where it is stored in less. Block sums are added up
    in float64. A position is left out and counted where its softmax has no finite normaliser: a hidden state with
    NaN or inf, logits beyond float32. A row of E with NaN breaks them all, one with inf those where its logit is not
    -inf (there the token has P = 0).

    A logit scale or soft cap that a model applies behind its head is not known here.

    Source: Cho et al. 2025, arXiv 2406.01468: alpha_w, the mean of P(w|x) over contexts x. Raises ValueError where
    widths differ, or the bias has another length.
    """
    if hidden.shape[-1] != embedding.shape[1] or (bias is not None and bias.shape != embedding.shape[:1]):
        raise ValueError(
            f"hidden states are {hidden.shape[-1]} wide, the bias has {None if bias is None else len(bias)} entries; "
            f"the output embedding is {' x '.join(map(str, embedding.shape))}: they belong to two models."
        )
    dtype = torch.float64 if torch.float64 in (embedding.dtype, hidden.dtype) else torch.float32
    rows, states = embedding.detach().to(dtype), hidden.detach().to(embedding.device, dtype)
    offset = None if bias is None else bias.detach().to(rows.device, dtype)
    vocab, dim = rows.shape
    log_sum = torch.full((vocab,), -torch.inf, dtype=torch.float64, device=rows.device)
    hidden_sum = torch.zeros(dim, dtype=torch.float64, device=rows.device)
    positions = torch.zeros((), dtype=torch.float64, device=rows.device)
    with exact_products(rows.device.type):
        for block in states.split(max(1, block_elements // max(1, vocab))):
            logits = torch.nn.functional.linear(block, rows, offset)
            normaliser = logits.logsumexp(1, keepdim=True)
            good = normaliser.isfinite()
            logits.sub_(normaliser).masked_fill_(~good, -torch.inf)
            log_sum = torch.logaddexp(log_sum, logits.logsumexp(0).double())
            hidden_sum += block.masked_fill(~good, 0).sum(0, dtype=torch.float64)
            positions += good.sum()
    return ProbabilitySums(
        log_sum=log_sum, hidden_sum=hidden_sum, positions=positions, excluded=len(states) - positions
    )


def split_half_reliability(
    even: ProbabilitySums, odd: ProbabilitySums, *, mask: Bool[Tensor, "vocab"] | None = None
) -> Float64[Tensor, ""]:
    """Pearson's correlation over tokens of log alpha from two halves of the sequences, in [-1, 1].

    Not corrected after Spearman and Brown: it is the reliability of half of the text; 2 r / (1 + r) estimates that
    of all of it. NaN where a half is empty or log alpha is the same for all tokens; tokens with alpha = 0 in a half
    are left out.
    """
    return _masked_pearson(even.log_alpha, odd.log_alpha, mask=mask)


@torch.no_grad()
def mean_hidden_r2(
    embedding: Float[Tensor, "vocab dim"], sums: ProbabilitySums, *, mask: Bool[Tensor, "vocab"] | None = None
) -> Float64[Tensor, ""]:
    """r^2(E.mu, log alpha) in [0, 1]: how much of the target the mean state alone explains, with nothing fitted.

    The baseline of every R^2 on this target: log P(w|x) is linear in E, so E.mu is nearly log alpha by algebra.
    NaN where either side is constant.
    """
    dtype = torch.promote_types(embedding.dtype, torch.float32)
    with exact_products(embedding.device.type):
        scores = embedding.detach().to(dtype) @ sums.mean_hidden.to(dtype)
    return _masked_pearson(scores.double(), sums.log_alpha, mask=mask).square()


def _masked_pearson(a: Tensor, b: Tensor, *, mask: Tensor | None) -> Tensor:
    """Pearson's correlation over the mask, where both sides are finite; no size depends on the values."""
    keep = a.isfinite() & b.isfinite()
    if mask is not None:
        keep = keep & mask.to(keep.device)
    return pearson(a.where(keep, 0), b.where(keep, 0), weights=keep.double())
