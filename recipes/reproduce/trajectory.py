"""What only every-step snapshots show: how the frequency direction comes about, which rows move, on what counts.

Each figure stands beside its control: the same with permuted labels, with random bins, with another seed's seen counts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from bins import bins_of

import trainhooks as th
from trainhooks.lead.onset import onset
from trainhooks.probe import fit_probe

PERMUTATIONS = 20
SEEN_STEPS = (1, 2, 4, 8, 16, 32, 64, 100, 150, 200, 300)
SMOOTH = 5  # degree in log count of what is taken away from log(1 + seen)


def grown_or_rotated(store: th.Store) -> dict[str, Any]:
    """The frequency direction g_t = E_t' z / n, z the standardised log counts, on rows less their mean.

    `cosine` is cos(g_t, g_T) and `size` |g_t| / |g_T|: a direction that is grown has its cosine early and its size
    late, one that is rotated the other way round. `null_cosine` and `null_size` are medians of the same over permuted
    z, each permutation held over time, `null_high` is the largest cosine among them.
    """
    from measure import log_spaced, rounded

    counts = np.asarray(store.token_counts)
    keep = counts > 0
    z = np.log(counts[keep])
    z = (z - z.mean()) / z.std()
    draw = np.random.default_rng(0)
    labels = np.stack([z, *(draw.permutation(z) for _ in range(PERMUTATIONS))])
    steps = store.steps[log_spaced(store.steps)]
    every = np.stack([labels @ _centred(store, step, keep) / len(z) for step in steps])  # step, label, dim
    size = np.linalg.norm(every, axis=-1)
    cosine = (every * every[-1]).sum(-1) / (size * size[-1])
    share = size / size[-1]
    half, direction = (onset(steps, values, q=0.5) for values in (share[:, 0], cosine[:, 0]))
    reached = steps[int(np.argmax(cosine[:, 0] >= 0.9))]
    null = np.median(cosine[:, 1:], axis=1)
    return {
        "step": steps.tolist(),
        "cosine": rounded(cosine[:, 0]),
        "size": rounded(share[:, 0]),
        "null_cosine": rounded(null),
        "null_high": rounded(cosine[:, 1:].max(1)),
        "null_size": rounded(np.median(share[:, 1:], axis=1)),
        "direction_at": int(reached),
        "null_direction_at": int(steps[int(np.argmax(null >= 0.9))]),
        "size_then": rounded(float(share[np.flatnonzero(steps == reached)[0], 0])),
        "half_cosine": rounded(direction.step),
        "half_size": rounded(half.step),
    }


def _centred(store: th.Store, step: int, keep: np.ndarray) -> np.ndarray:
    rows = store.output_embedding(int(step))[: len(keep)][keep].astype(np.float64)
    centred: np.ndarray = rows - rows.mean(0)
    return centred


def rows_that_move(store: th.Store) -> dict[str, Any]:
    """How far the rows of each frequency bin have come, and how much of it is one common shift.

    `way` is the RMS of |E_t(w) - E_0(w)| over the bin, over the same at the last step; `half` the step at which it has
    made half. `common` is |mean shift|^2 / mean |shift|^2 at the last step, in [0, 1]: 1 where all rows of the bin go
    the same way. `first` is the RMS shift after 8 updates, over that of all counted rows. `random` is the same for bins
    of the same sizes drawn at random.
    """
    from measure import log_spaced, rounded

    counts = np.asarray(store.token_counts)
    bins = bins_of(counts)
    order = np.random.default_rng(0).permutation(len(counts))
    scattered = {name: mask[order] for name, mask in bins.items()}
    steps = store.steps[log_spaced(store.steps)]
    start = store.output_embedding(int(steps[0]))[: len(counts)].astype(np.float64)
    found: dict[str, dict[str, list[float]]] = {
        "bins": {name: [] for name in bins},
        "random": {name: [] for name in bins},
    }
    shift, early, eight = start, {}, int(np.abs(steps - 8).argmin())
    for index, step in enumerate(steps):
        shift = store.output_embedding(int(step))[: len(counts)].astype(np.float64) - start
        square = np.square(shift).sum(1)
        for name in bins:
            found["bins"][name].append(float(np.sqrt(square[bins[name]].mean())))
            found["random"][name].append(float(np.sqrt(square[scattered[name]].mean())))
        if index == eight:
            whole = np.sqrt(square[counts > 0].mean())
            early = {name: found["bins"][name][-1] / whole for name in bins}
    result: dict[str, Any] = {"step": steps.tolist()}
    for which, masks in (("bins", bins), ("random", scattered)):
        result[which] = {
            name: {
                "tokens": int(mask.sum()),
                "way": rounded(np.array(found[which][name]) / found[which][name][-1]),
                "half": rounded(onset(steps, np.array(found[which][name]), q=0.5).step),
                "common": rounded(_common(shift[mask])),
            }
            for name, mask in masks.items()
        }
    result["first"] = {name: rounded(value) for name, value in early.items()}
    return result


def _common(shift: np.ndarray) -> float:
    return float(np.square(shift.mean(0)).sum() / np.square(shift).sum(1).mean())


def seen_beside_corpus(store: th.Store, other: th.Store | None) -> dict[str, Any]:
    """Held-out R^2 of a probe for what a run has *seen* of a token beyond what the corpus would have it see.

    The target at step t is log(1 + labels seen up to t) less a polynomial in the token's log corpus count, so the
    corpus' own frequency explains none of it. `own` takes the run's own labels, `other` those of another seed at the
    same step, which this run never saw: what `other` reaches is no trace of what was seen. None for one seed alone.
    """
    from measure import rounded

    counts = np.asarray(store.token_counts)
    keep = torch.from_numpy(counts > 0)
    steps = [step for step in SEEN_STEPS if step in store.steps]
    found: dict[str, list[float | None]] = {"own": [], "other": [], "seen": []}
    for step in steps:
        embedding = torch.from_numpy(store.output_embedding(step))[: len(counts)]
        seen = store.label_counts(step)[: len(counts)]
        found["seen"].append(float((seen[counts > 0] > 0).mean()))
        labels = {"own": seen, "other": None if other is None else other.label_counts(step)[: len(counts)]}
        for name, values in labels.items():
            target = None if values is None else torch.from_numpy(_beyond(values, counts))
            found[name].append(None if target is None else float(fit_probe(embedding, target, mask=keep).heldout_r2))
    return {"step": steps, **{name: [rounded(value) for value in values] for name, values in found.items()}}


def _beyond(seen: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """log(1 + seen), less its polynomial in the log corpus count; 0 where the corpus has none."""
    keep = counts > 0
    x, y = np.log(counts[keep]), np.log1p(seen[keep])
    fitted = np.polynomial.Polynomial.fit(x, y, SMOOTH)
    rest = np.zeros(len(counts))
    rest[keep] = y - fitted(x)
    return rest
