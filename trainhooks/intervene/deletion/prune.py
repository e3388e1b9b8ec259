"""Delete dimensions of an output embedding: orders, variants and references on documents that chose none of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from trainhooks.core.printable import page
from trainhooks.intervene.contexts import Contexts
from trainhooks.intervene.deletion.curves import FRACTIONS, MEASURES, DeletionCurves, deletion_curves
from trainhooks.intervene.deletion.gains import BootstrapInterval, Gain, fraction_intervals, saliency_gain
from trainhooks.intervene.deletion.orders import ORDERS, RANDOM, deletion_orders, probability_slope
from trainhooks.intervene.deletion.variants import RANK, VARIANTS, build_codes, edited_head
from trainhooks.intervene.target import Target


@dataclass(frozen=True)
class Pruning:
    """Curves on test contexts, the largest deletable fraction of each code, and saliency's gain by variant.

    The paper's sparsity claim is `gains["zero"]`: uncompensated, saliency against random. A small difference between
    compensated orders says that hidden states have low effective rank; `rank_k` stands beside it.
    """

    curves: DeletionCurves
    largest: tuple[BootstrapInterval, ...]
    gains: dict[str, Gain]
    js_bound: float
    loss_bound: float

    def to_dict(self) -> dict[str, Any]:
        """Everything but the codes' matrices, ready for JSON; a bound that is not defined is None."""
        means = self.curves.mean()[0]
        return {
            "fractions": list(self.curves.fractions),
            "deleted_shares": list(self.curves.shares),
            "deleted": list(self.curves.deleted),
            "positions": int(self.curves.positions.sum()),
            "documents": len(self.curves.positions),
            "loss": float(self.curves.loss.sum() / self.curves.positions.sum()),
            "bounds": {"js": self.js_bound, "loss": self.loss_bound},
            "gains": {
                name: {part: _plain(getattr(gain, part)) for part in ("fraction", "js", "loss")}
                | {"at": gain.at, "seeds": gain.seeds, "significant": gain.significant}
                for name, gain in self.gains.items()
            },
            "codes": [
                {"code": code.label, "largest": _plain(interval)}
                | {measure: rows[:, i].tolist() for i, measure in enumerate(MEASURES)}
                for code, interval, rows in zip(self.curves.codes, self.largest, means, strict=True)
            ],
        }

    def render(self) -> str:
        """A table: for each code the largest fraction with its interval, and the measures at 30%."""
        means = self.curves.mean()[0]
        at = min(range(len(self.curves.fractions)), key=lambda i: abs(self.curves.fractions[i] - 0.3))
        lines = [
            f"{len(self.curves.positions)} test documents, {int(self.curves.positions.sum())} positions; the largest "
            f"fraction keeps JS <= {self.js_bound:g} and |loss change| <= {self.loss_bound:g} nats; "
            f"measures at {self.curves.fractions[at]:.0%} deleted",
            f"{'variant/order':28}{'largest fraction':>24}" + "".join(f"{name:>13}" for name in MEASURES),
        ]
        for code, found, row in zip(self.curves.codes, self.largest, means[:, at].tolist(), strict=True):
            lines.append(f"{code.label:28}{_text(found):>24}" + "".join(f"{value:13.4f}" for value in row))
        for name, gain in self.gains.items():
            lines.append(
                f"{name}: saliency less one random order ({gain.seeds} seeds): fraction {_text(gain.fraction)}, "
                f"{'significant' if gain.significant else 'not significant'}; JS saved at {gain.at:.0%} "
                f"{_text(gain.js)}, loss {_text(gain.loss)}"
            )
        return page(lines).removesuffix("\n")


def _plain(found: BootstrapInterval) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in vars(found).items()}


def _text(found: BootstrapInterval) -> str:
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def prune(
    weight: Float[Tensor, "vocab dim"],
    *,
    calibration: Contexts,
    test: Contexts,
    bias: Float[Tensor, "vocab"] | None = None,
    slope: Float[Tensor, "dim"] | None = None,
    mask: Bool[Tensor, "vocab"] | None = None,
    orders: tuple[str, ...] = ORDERS,
    variants: tuple[str, ...] = VARIANTS,
    random: int = 10,
    fractions: tuple[float, ...] = FRACTIONS,
    js_bound: float = 0.02,
    loss_bound: float = 0.05,
    seed: int = 0,
    thin: int = 2,
) -> Pruning:
    """Every order with every variant, and the rank-k reference, along the fractions.

    Slope, means and second moments come from `calibration`, every figure from `test`; random orders see every
    `thin`-th position of a document (`deletion_curves`). `slope` [dim] replaces the probe's own (a permuted one is a
    control). A variant has a gain where the orders hold `ascending` and at least three random ones. Cost as
    `deletion_curves`. Raises ValueError as the parts do.

    Source: Cho et al. 2025, arXiv 2406.01468, the claim; order and bounds are this package's own.
    """
    if slope is None:
        slope = probability_slope(weight, calibration.hidden, bias=bias, mask=mask)
    found = deletion_orders(weight, calibration.hidden, slope=slope, mask=mask, names=orders, random=random, seed=seed)
    codes = build_codes(weight, calibration.hidden, orders=found, variants=variants)
    curves = deletion_curves(
        weight,
        test.hidden,
        labels=test.labels,
        document=test.document,
        codes=codes,
        fractions=fractions,
        bias=bias,
        thin=thin,
    )
    bounds: dict[str, Any] = {"js_bound": js_bound, "loss_bound": loss_bound}
    gains = {}
    if "ascending" in orders and random >= 3:
        gains = {name: saliency_gain(curves, variant=name, seed=seed, **bounds) for name in variants}
    return Pruning(curves, tuple(fraction_intervals(curves, seed=seed, **bounds)), gains, js_bound, loss_bound)


def pruned_target(target: Target, pruning: Pruning, *, code: str, fraction: float, untie: bool = True) -> Target:
    """The model with a code's dimensions deleted, as `Target.with_head` makes it.

    `context_mean` is a bias for each token; where the model's class has none, the last norm holds the deleted
    dimensions at their means instead (scale 0, bias mu_i), which is the same model exactly.
    A tied input embedding keeps its matrix with `untie`, which is what was measured; without, it loses the same
    dimensions and hidden states change. Raises ValueError for an unknown code or a fraction outside (0, 1].
    """
    known = {each.label: each for each in pruning.curves.codes}
    check_savable(target, code=code, fraction=fraction, known=list(known))
    number = round(fraction * target.weight.shape[1])
    mean, order = known[code].mean, known[code].order
    if mean is not None and order is not None and not target.keeps_bias:
        gone = order.dimensions[:number]
        return target.with_constant(gone, mean[gone])
    weight, bias = edited_head(target.weight, code=known[code], deleted=number, bias=target.bias)
    return target.with_head(weight, bias=bias, untie=untie)


def check_savable(target: Target, *, code: str, fraction: float, known: Sequence[str]) -> None:
    """Raises ValueError for a code that is not among the `known` labels, a fraction outside (0, 1], and a
    `context_mean` that neither the head (no bias) nor the last norm (no bias) of the model can hold."""
    check_code(code, fraction=fraction, known=known)
    if code.startswith("context_mean/") and not target.keeps_bias:
        target.with_constant(torch.empty(0, dtype=torch.int64), torch.empty(0))


def check_code(code: str, *, fraction: float, known: Sequence[str]) -> None:
    """Raises ValueError for a code that is not among the `known` labels, and a fraction outside (0, 1]."""
    if code not in known or not 0 < fraction <= 1:
        raise ValueError(f"got code {code!r} at {fraction}; needed a fraction in (0, 1] and one of {', '.join(known)}.")


def code_labels(orders: Sequence[str], variants: Sequence[str], *, random: int, seed: int = 0) -> list[str]:
    """The labels of the codes that `prune` will make."""
    names = [*orders, *(f"{RANDOM}-{number}" for number in range(seed, seed + random))]
    return [f"{variant}/{name}" for variant in variants for name in names] + [RANK]


def token_mask_of(target: Target) -> Bool[Tensor, "vocab"]:
    """Rows that are tokens: ids below the tokenizer's size; the rest is padding."""
    return torch.arange(target.vocab) < target.tokenizer.size
