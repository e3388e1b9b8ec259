"""How many documents the slope needs: few-sample curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64

from trainhooks.intervene.outputs import Outputs, token_log_p
from trainhooks.intervene.slope import probability_slope
from trainhooks.intervene.steering.directions import make_directions
from trainhooks.intervene.steering.edits import SteeringData
from trainhooks.intervene.steering.scales import log_odds
from trainhooks.probe import slope_cosine


@dataclass(frozen=True)
class FewSamples:
    """`documents` (groups of them beyond 64) that alpha was averaged over, in so many draws; `cosine` [draw] of the
    slope with that of the whole calibration text, `error` [draw] the mean over tokens and ratios of
    |log(achieved / r)| on the test text when the least-norm edit is taken at the paper's scale log r (no search)."""

    documents: int
    cosine: Float64[torch.Tensor, "draw"]
    error: Float64[torch.Tensor, "draw"]


def few_sample_curve(
    bench: SteeringData,
    *,
    tokens: Sequence[int],
    ratios: Sequence[float],
    vocab_size: int,
    sizes: Sequence[int] = (1, 2, 4, 8, 16, 32),
    draws: int = 20,
    seed: int = 0,
) -> list[FewSamples]:
    """The slope from n calibration documents instead of all, for each n of `sizes` below their number.

    Raises ValueError for fewer than 2 draws, or a size below 1.
    """
    if draws < 2 or min(sizes, default=1) < 1:
        raise ValueError(f"got {draws} draws and sizes {list(sizes)}; needed 2 draws and sizes of 1 or more.")
    generator = torch.Generator().manual_seed(seed)
    groups = len(bench.before.group_positions)
    curve = []
    for size in sorted({size for size in sizes if size < groups}):
        chosen = [torch.randperm(groups, generator=generator)[:size] for _ in range(draws)]
        alpha = torch.stack([_alpha(bench.before, groups_) for groups_ in chosen], dim=1)
        slopes = probability_slope(bench.weight, alpha, vocab_size=vocab_size)
        error = torch.stack([_error(bench, slope, tokens, ratios) for slope in slopes])
        curve.append(FewSamples(size, slope_cosine(slopes, bench.slope.expand_as(slopes)), error))
    return curve


def _alpha(before: Outputs, groups: torch.Tensor) -> torch.Tensor:
    return before.group_sums[groups].sum(0) / before.group_positions[groups].sum()


def _error(bench: SteeringData, slope: torch.Tensor, tokens: Sequence[int], ratios: Sequence[float]) -> torch.Tensor:
    [direction] = make_directions(["least_norm"], slope=slope, weight=bench.weight, hidden=bench.calibration.hidden)
    shift = direction.shift(bench.test.hidden)
    log_q = token_log_p(bench.weight, bench.bias, bench.test, bench.before_test, list(tokens))
    odds, mean = log_odds(log_q), log_q.exp().mean(1)
    logs = torch.tensor(list(ratios), dtype=torch.float64).log()
    return torch.stack(
        [((torch.sigmoid(odds + log * shift).mean(1) / mean).log() - log).abs().mean() for log in logs]
    ).mean()
