"""The frequency target, which tokens enter a fit, and how much they weigh."""

from __future__ import annotations

from collections.abc import Iterable
from operator import index
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from trainhooks.core.token_counts import TokenCounts

Counts = TokenCounts | np.ndarray | Tensor


def as_counts(counts: Any) -> Int64[Tensor, "vocab"]:
    """Token counts as an int64 tensor on the CPU, from `TokenCounts`, a numpy array or a tensor.

    Raises ValueError where they are not whole, negative, not one-dimensional, or all zero.
    """
    raw = getattr(counts, "counts", counts)
    array = raw.detach().cpu().numpy() if isinstance(raw, Tensor) else np.asarray(raw)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(
            f"token counts have shape {array.shape} and type {array.dtype}; needed are whole numbers, one "
            "for each token id. Convert them with .astype(np.int64) once you know that they are whole."
        )
    values = torch.from_numpy(array.astype(np.int64))
    if bool((values < 0).any()) or not bool((values > 0).any()):
        raise ValueError(
            f"token counts lie in {int(values.min()) if len(values) else 'an empty array'} ... "
            f"{int(values.max()) if len(values) else ''}; needed are counts >= 0 with at least one above 0. "
            "Check how the file was read."
        )
    return values


def counts_for_rows(counts: Any, *, rows: int, vocab_size: int | None = None) -> Int64[Tensor, "vocab"]:
    """Counts for each row of an output embedding, 0 for padding: `TokenCounts.for_rows`, which raises ValueError."""
    fitting = TokenCounts(as_counts(counts).numpy()).for_rows(rows, vocab_size=vocab_size)
    return torch.from_numpy(np.array(fitting))


def token_mask(
    counts: Counts,
    *,
    min_count: int = 1,
    exclude: Iterable[int] = (),
    mask: Bool[Tensor, "vocab"] | None = None,
    vocab_size: int | None = None,
) -> Bool[Tensor, "vocab"]:
    """Which tokens enter a fit [vocab]: counted `min_count` times or more, below `vocab_size`, not excluded.

    `exclude` lists ids (special tokens), `mask` must hold as well. Zero counts never enter: their log is not
    finite (`smoothed_frequency_target` is the variant that takes them).

    Raises ValueError for a `min_count` or `vocab_size` below 1, excluded ids that do not exist, or a mask that is not
    one boolean for each count.
    """
    values = as_counts(counts)
    if min_count < 1:
        raise ValueError(f"min_count is {min_count}; needed is 1 or more, since the log of a zero count is not finite.")
    _check_vocab_size(vocab_size)
    keep = values >= min_count
    if vocab_size is not None:
        keep[vocab_size:] = False
    ids = torch.tensor(sorted({index(token) for token in exclude}), dtype=torch.int64)
    if len(ids) and (int(ids[0]) < 0 or int(ids[-1]) >= len(values)):
        raise ValueError(
            f"excluded ids {ids[:3].tolist()} ... {int(ids[-1])} do not all lie in 0 ... {len(values) - 1}."
        )
    keep[ids] = False
    if mask is not None:
        keep &= _checked_mask(mask, rows=len(values))
    return keep


def _check_vocab_size(vocab_size: int | None) -> None:
    if vocab_size is not None and vocab_size < 1:
        raise ValueError(f"vocab_size is {vocab_size}; needed is the tokenizer's size, or None for no padding.")


def _checked_mask(mask: Tensor, *, rows: int) -> Tensor:
    if mask.shape != (rows,) or mask.dtype != torch.bool:
        raise ValueError(
            f"the mask has {mask.numel()} entries of type {mask.dtype}; the counts have {rows}: "
            "pass one boolean for each."
        )
    return mask.cpu()


def frequency_target(counts: Counts, *, mask: Bool[Tensor, "vocab"] | None = None) -> Float[Tensor, "vocab"]:
    """y_w = -log(c_w / N) in nats [vocab], float64, with N the sum of all counts; NaN outside the mask.

    Without a mask, it is the tokens with a count of 1 or more. Source: Cho et al. 2025, arXiv 2406.01468, with the
    corpus frequency in place of the model's average probability.

    Raises ValueError where the mask holds a token that was never counted.
    """
    values = as_counts(counts)
    keep = values > 0 if mask is None else _checked_mask(mask, rows=len(values))
    unseen = (keep & (values == 0)).nonzero().flatten()
    if len(unseen):
        raise ValueError(
            f"the mask holds {len(unseen)} tokens that were never counted (ids {unseen[:5].tolist()}): their target "
            "is infinite. Build the mask with `token_mask`, or use `smoothed_frequency_target`."
        )
    y = -(values.double() / values.sum(dtype=torch.float64)).log()
    return y.masked_fill(~keep, torch.nan)


def smoothed_frequency_target(counts: Counts) -> Float[Tensor, "vocab"]:
    """-log((c + 1/2) / (N + V/2)) in nats for every row [vocab], unseen ones included: the sensitivity variant."""
    values = as_counts(counts).double()
    return -((values + 0.5) / (values.sum() + 0.5 * len(values))).log()


def shrunk_weights(counts: Counts, *, prior: float = 10.0) -> Float[Tensor, "vocab"]:
    """Weights c / (c + prior) in [0, 1): rare tokens count less, common ones alike [vocab]."""
    values = as_counts(counts).double()
    return values / (values + prior)


def sqrt_weights(counts: Counts) -> Float[Tensor, "vocab"]:
    """Weights sqrt(c) [vocab]; `effective_rows` says how few tokens then decide."""
    return as_counts(counts).double().sqrt()


def effective_rows(weights: Float[Tensor, "row"]) -> float:
    """How many equally weighted rows the weights amount to: (sum w)^2 / sum w^2, in [1, rows]; NaN for all 0."""
    w = weights.double()
    return float(w.sum().square() / w.square().sum())
