"""The scale at which a token's mean probability is r times what it was: root search outward from 0.

Adding c u to row w moves logit w alone, by s = c h.u, so P' = P e^s / (1 - P + P e^s), which is the sigmoid of
log(P / (1 - P)) + s: nothing here depends on the vocabulary's size.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float64
from torch import Tensor

_GRID = 64  # magnitudes tried on each side of 0, each 1.2 times the one before
_STEPS = 60  # of safeguarded Newton; some 8 are needed
_TOLERANCE = 1e-9  # of the ratio, relative


def log_odds(log_p: Float64[Tensor, "*any"]) -> Float64[Tensor, "*any"]:
    """log(P / (1 - P)) from log P < 0, in nats."""
    return log_p - torch.log(-torch.expm1(log_p))


def find_scales(
    log_p: Float64[Tensor, "position"], shift: Float64[Tensor, "position"], ratios: Float64[Tensor, "ratio"]
) -> Float64[Tensor, "ratio"]:
    """c nearest to 0 for which the mean of P' is r times the mean of P, to 1e-9; NaN where that is infeasible.

    `log_p` is log P(w|x) at every position, `shift` how far a scale of 1 moves the logit there (h.u; ones for a plain
    bias). The mean is not monotone in c where `shift` changes sign, so both sides of 0 are searched outward on a
    grid of 64 magnitudes (10^-3 to 10^2 over the shift's root mean square) and the first crossing is refined; two
    crossings between neighbours of the grid are passed over. Infeasible: r alpha >= 1, or no crossing.

    Raises ValueError where a ratio is not positive and finite.
    """
    check_ratios(ratios)
    odds = log_odds(log_p)
    wanted = ratios * log_p.exp().mean()
    size = shift.square().mean().sqrt()
    if not bool(size > 0) or not bool(size.isfinite()):
        return torch.full_like(ratios, math.nan).masked_fill_(ratios == 1, 0)
    grid = torch.logspace(-3, 2, _GRID, dtype=torch.float64) / size
    grid = torch.cat([torch.zeros(1, dtype=torch.float64), grid])
    brackets = [_first_crossing(odds, shift * sign, grid, wanted) for sign in (1.0, -1.0)]
    upper = torch.stack([high for _, high in brackets])
    side = upper.argmin(0)
    low = torch.stack([low for low, _ in brackets]).gather(0, side[None])[0]
    high = upper.gather(0, side[None])[0]
    feasible = high.isfinite() & (wanted < 1)
    sign = 1.0 - 2.0 * side
    scale = _refine(odds, shift, sign * low, torch.where(feasible, sign * high, 0.0), wanted)
    return torch.where(ratios == 1, 0.0, torch.where(feasible, scale, math.nan))


def check_ratios(ratios: Tensor) -> None:
    """Raises ValueError where a ratio is not a positive finite number."""
    bad = ratios[~((ratios > 0) & ratios.isfinite())]
    if len(bad):
        raise ValueError(f"got the ratio {bad[0].item():g}; a probability can be multiplied by numbers above 0 only.")


def _first_crossing(odds: Tensor, shift: Tensor, grid: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Neighbours on the grid between which the mean first passes each wanted value; (inf, inf) where none do."""
    means = torch.stack([torch.sigmoid(odds + c * shift).mean() for c in grid])
    above = means[:, None] > wanted
    crossed = above[1:] != above[:-1]
    first = crossed.int().argmax(0)
    any_ = crossed.any(0)
    return torch.where(any_, grid[first], math.inf), torch.where(any_, grid[first + 1], math.inf)


def _refine(odds: Tensor, shift: Tensor, low: Tensor, high: Tensor, wanted: Tensor) -> Tensor:
    """Newton inside a bracket, halving where a step leaves it. `low` is inf where there is nothing to find."""
    low = torch.where(low.isfinite(), low, 0.0)
    rises = torch.sigmoid(odds + high[:, None] * shift).mean(1) > wanted
    scale = (low + high) / 2
    for _ in range(_STEPS):
        p = torch.sigmoid(odds + scale[:, None] * shift)
        error = p.mean(1) - wanted
        if bool((error.abs() <= _TOLERANCE * wanted).all()):
            break
        beyond = (error > 0) == rises
        low, high = torch.where(beyond, low, scale), torch.where(beyond, scale, high)
        step = scale - error / (p * (1 - p) * shift).mean(1)
        inside = (step > torch.minimum(low, high)) & (step < torch.maximum(low, high))
        scale = torch.where(inside, step, (low + high) / 2)
    return scale


def find_joint_scales(
    log_p: Float64[Tensor, "token position"],
    shift: Float64[Tensor, "token position"],
    ratios: Float64[Tensor, "token"],
) -> Float64[Tensor, "token"]:
    """The scales c_w that bring all tokens to their ratios at once, to 1e-9; all NaN where that is infeasible.

    Tokens share a normaliser: P'_w = P_w e^(s_w) / (1 - sum P + sum P e^s). Newton on the logarithms of the means,
    along ratios that grow from 1 (so the branch that leaves 0 is followed). Infeasible: the wanted means sum to 1
    or more, or the branch ends.

    Raises ValueError where a ratio is not positive and finite.
    """
    check_ratios(ratios)
    means = log_p.exp().mean(1)
    scales = torch.zeros_like(means)
    if bool((ratios * means).sum() >= 1):
        return scales + math.nan
    done, step = 0.0, 0.25
    while done < 1:
        aim = min(1.0, done + step)
        found = _joint_newton(log_p, shift, means * ratios**aim, scales)
        if found is None:
            step /= 2
            if step < 1e-3:
                return scales + math.nan
            continue
        done, scales = aim, found
    return scales


def joint_log_p(
    log_p: Float64[Tensor, "token position"], moved: Float64[Tensor, "token position"]
) -> Float64[Tensor, "token position"]:
    """log P' of tokens whose logits move together by `moved`, in nats."""
    rest = (1 - log_p.exp().sum(0)).clamp_min(1e-300).log()
    raised = log_p + moved
    return raised - torch.logaddexp(rest, raised.logsumexp(0))


def _joint_newton(log_p: Tensor, shift: Tensor, wanted: Tensor, start: Tensor) -> Tensor | None:
    scales = start
    for _ in range(20):
        p = joint_log_p(log_p, scales[:, None] * shift).exp()
        means = p.mean(1)
        error = means.log() - wanted.log()
        if not bool(error.isfinite().all()) or bool(error.abs().max() > 50):
            return None
        if bool(error.abs().max() < _TOLERANCE):
            return scales
        pull = (p * shift) @ p.T / p.shape[1]
        jacobian = (torch.diag((p * shift).mean(1)) - pull.T) / means[:, None]
        step, info = torch.linalg.solve_ex(jacobian, error)
        if int(info) != 0:
            return None
        scales = scales - step
    return None
