"""The headlines of deletion: how much can go, and what saliency gains over random orders, with intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from trainhooks.intervene.deletion.curves import MEASURES, DeletionCurves
from trainhooks.intervene.deletion.orders import RANDOM
from trainhooks.intervene.deletion.variants import DeletionVariant

LEVEL = 0.95


@dataclass(frozen=True)
class BootstrapInterval:
    """An estimate with its 95% interval; NaN bounds where nothing could be resampled."""

    value: float
    low: float
    high: float

    @property
    def above_zero(self) -> bool:
        """Whether the whole interval lies above 0; False with NaN bounds."""
        return self.low > 0


@dataclass(frozen=True)
class Gain:
    """Saliency's ascending order against random ones: `fraction` deletable more, and nats of JS and loss saved at `at`.

    Each interval is one for a *single* random order, not for their mean: an order that owes nothing to saliency is
    one such order, and lies inside. `seeds` random orders were drawn.
    """

    variant: str
    fraction: BootstrapInterval
    js: BootstrapInterval
    loss: BootstrapInterval
    at: float
    seeds: int

    @property
    def significant(self) -> bool:
        """Whether saliency lets more be deleted than a random order does, at 95%."""
        return self.fraction.above_zero


def document_draws(documents: int, *, draws: int = 400, seed: int = 0) -> Float64[Tensor, "draw document"]:
    """How often each document is in each bootstrap sample; [0, documents] for fewer than two. Own CPU generator."""
    if documents < 2:
        return torch.zeros(0, documents, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(documents, (draws, documents), generator=generator)
    return torch.zeros(draws, documents, dtype=torch.float64).scatter_add_(1, chosen, torch.ones_like(chosen).double())


def largest_fraction(
    means: Float64[Tensor, "*batch fraction measure"],
    *,
    fractions: tuple[float, ...],
    js_bound: float = 0.02,
    loss_bound: float = 0.05,
) -> Float64[Tensor, "*batch"]:
    """The fraction at which JS or |loss change| first passes its bound (nats), between grid points linear; in [0, 1].

    `fractions` are what was deleted (`DeletionCurves.shares`): at 64 dimensions 5% comes to 3 of them, 4.7%.

    The curve starts at 0 with nothing deleted; later returns under the bounds do not count. The last fraction of
    the grid where no bound is passed. Raises ValueError for a bound that is not above 0.
    """
    if not (js_bound > 0 and loss_bound > 0):
        raise ValueError(f"bounds are {js_bound} and {loss_bound} nats; both must be above 0.")
    share = torch.maximum(
        means[..., MEASURES.index("js")] / js_bound, means[..., MEASURES.index("loss_change")].abs() / loss_bound
    )
    share = torch.cat([torch.zeros_like(share[..., :1]), share], -1)
    grid = share.new_tensor((0.0, *fractions))
    passed = share > 1
    first = passed.to(torch.int8).argmax(-1, keepdim=True).clamp_min(1)
    after, before = share.gather(-1, first)[..., 0], share.gather(-1, first - 1)[..., 0]
    left, right = grid[first[..., 0] - 1], grid[first[..., 0]]
    crossing = left + (right - left) * (1 - before) / (after - before)
    return torch.where(passed.any(-1), crossing, grid[-1])


def fraction_intervals(
    curves: DeletionCurves, *, js_bound: float = 0.02, loss_bound: float = 0.05, draws: int = 400, seed: int = 0
) -> list[BootstrapInterval]:
    """The largest deletable fraction of each code, with percentiles over resampled documents."""
    options: dict[str, float] = {"js_bound": js_bound, "loss_bound": loss_bound}
    values = largest_fraction(curves.mean()[0], fractions=curves.shares, **options)
    weights = document_draws(len(curves.positions), draws=draws, seed=seed)
    if not len(weights):
        return [BootstrapInterval(float(value), math.nan, math.nan) for value in values]
    drawn = largest_fraction(curves.mean(weights=weights), fractions=curves.shares, **options)
    tails = drawn.quantile(drawn.new_tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2]), dim=0)
    return [BootstrapInterval(float(v), float(a), float(b)) for v, a, b in zip(values, *tails, strict=True)]


def saliency_gain(
    curves: DeletionCurves,
    *,
    variant: str = "zero",
    order: str = "ascending",
    at: float = 0.3,
    js_bound: float = 0.02,
    loss_bound: float = 0.05,
    draws: int = 400,
    seed: int = 0,
) -> Gain:
    """What an order gains over the random ones of the same variant.

    Interval: the difference to the random mean -+ t_(n-1) sqrt(s^2 (1 + 1/n) + v), s^2 the variance over the n random
    seeds, v that of the difference over resampled documents (0 with a single document, whose spread is unknown).
    `at` is taken at the grid's nearest fraction. Raises ValueError where the curves lack the order, or have fewer than
    three random ones.
    """
    random = [i for i, code in enumerate(curves.codes) if _is(code, variant, RANDOM)]
    chosen = [i for i, code in enumerate(curves.codes) if _is(code, variant, order)]
    if not chosen or len(random) < 3:
        raise ValueError(
            f"the curves have {len(chosen)} codes {variant}/{order} and {len(random)} random ones; needed are 1 and at "
            "least 3. Evaluate them (10 random seeds by default)."
        )
    nearest = min(range(len(curves.fractions)), key=lambda i: abs(curves.fractions[i] - at))
    weights = document_draws(len(curves.positions), draws=draws, seed=seed)

    def figures(means: Tensor) -> Tensor:
        fraction = largest_fraction(means, fractions=curves.shares, js_bound=js_bound, loss_bound=loss_bound)
        saved = -means[..., nearest, [MEASURES.index("js"), MEASURES.index("loss_change")]]
        return torch.cat([fraction[..., None], saved], -1)

    point = figures(curves.mean())[0]
    drawn = figures(curves.mean(weights=weights)) if len(weights) else point[None].expand(2, -1, -1)
    fraction, js, loss = (_predictive(point[..., i], drawn[..., i], chosen=chosen[0], random=random) for i in range(3))
    return Gain(variant, fraction, js, loss, at=curves.fractions[nearest], seeds=len(random))


def _is(code: DeletionVariant, variant: str, order: str) -> bool:
    return code.variant == variant and code.order is not None and code.order.name == order


def _predictive(point: Tensor, drawn: Tensor, *, chosen: int, random: list[int]) -> BootstrapInterval:
    from scipy.stats import t

    n = len(random)
    value = float(point[chosen] - point[random].mean())
    sampling = float((drawn[:, chosen] - drawn[:, random].mean(1)).var())
    spread = float(point[random].var()) * (1 + 1 / n) + sampling
    half = float(t.ppf((1 + LEVEL) / 2, n - 1)) * math.sqrt(spread)
    return BootstrapInterval(value, value - half, value + half)
