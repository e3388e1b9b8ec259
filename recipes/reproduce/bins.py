"""The log-linear fit by how often a token occurs: one slope for all of them, its error in each bin."""

from __future__ import annotations

import numpy as np
import torch

import trainhooks as th
from trainhooks.probe import fit_probe, frequency_target

EDGES = (1, 10, 100, 1_000, 10_000)


def bins_of(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Masks over the tokens: never counted, then by powers of ten."""
    found = {"0": counts == 0}
    for low, high in zip(EDGES, (*EDGES[1:], None), strict=True):
        label = f"{low:,} and more" if high is None else f"{low:,}-{high - 1:,}"
        found[label] = (counts >= low) & (counts < high if high else True)
    return {name: mask for name, mask in found.items() if mask.any()}


def by_bin(store: th.Store) -> dict[str, dict[str, float]]:
    """At the last step: held-out error of -log(c/N) in each bin, beside the bin's own variance (nat^2).

    Rows never counted have no target: what the fit over the others predicts for them is given instead.
    """
    from measure import rounded

    counts = np.asarray(store.token_counts)
    embedding = torch.from_numpy(store.output_embedding(int(store.steps[-1])))[: len(counts)]
    counted = torch.from_numpy(counts > 0)
    target = frequency_target(torch.from_numpy(counts))
    fit = fit_probe(embedding, target, mask=counted)
    ids = torch.arange(len(counts))
    held_out = torch.full((len(counts),), torch.nan, dtype=torch.float64)
    for fold in range(len(fit.fold_slope)):
        mine = ids % len(fit.fold_slope) == fold
        held_out[mine] = embedding[mine].double() @ fit.fold_slope[fold] + fit.fold_intercept[fold]
    error = (held_out - target).numpy()
    kept = {}
    for name, mask in bins_of(counts).items():
        if name == "0":
            kept[name] = {"tokens": int(mask.sum()), "predicted": rounded(float(held_out.numpy()[mask].mean()))}
            continue
        own = target.numpy()[mask]
        kept[name] = {
            "tokens": int(mask.sum()),
            "error": rounded(float(np.square(error[mask]).mean())),
            "bias": rounded(float(error[mask].mean())),
            "variance": rounded(float(own.var())),
        }
    return kept
