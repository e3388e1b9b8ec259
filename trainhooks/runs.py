"""From stores to verdicts: read what a run kept and hand it to the analysis."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from trainhooks.convergence import RunAnalysis, Series, analyze_run
from trainhooks.probe import frequency_target, token_mask
from trainhooks.store import Store, open_store


def analyze_store(
    store: str | Path | Store,
    *,
    q: Sequence[float] = (0.5, 0.9),
    draws: int = 99,
    seed: int = 0,
    max_records: int | None = None,
) -> RunAnalysis:
    """Lead, direction and onsets of a store's snapshots against its corpus counts (see `analyze_run`).

    Raises ValueError, with the store's path, where it has fewer than three snapshots or no token counts, and as
    `analyze_run`.
    """
    kept = store if isinstance(store, Store) else open_store(store)
    if kept.token_counts is None:
        raise ValueError(f"{kept.path} holds no token counts: record with counts= to ask for a verdict.")
    if len(kept.snapshots) < 3:
        raise ValueError(
            f"{kept.path} holds {len(kept.snapshots)} snapshots; a verdict needs 3 or more. "
            "Record longer, or with a denser snapshot_schedule."
        )
    counts = torch.from_numpy(np.asarray(kept.token_counts))
    excluded = kept.attributes.get("excluded_tokens", [])
    rates = kept["learning_rate"] if "learning_rate" in kept.names else np.empty(0)
    try:
        mask = token_mask(counts, min_count=int(kept.attributes.get("min_count", 1)), exclude=excluded)
        return analyze_run(
            kept.snapshots,
            frequency_target(counts, mask=mask).numpy(),
            mask=mask.numpy(),
            q=tuple(q),
            draws=draws,
            seed=seed,
            max_records=max_records,
            learning_rate=Series(kept.steps, rates) if np.isfinite(rates).any() else None,
        )
    except ValueError as error:
        raise ValueError(f"{kept.path}: {error}") from error  # which one, where several are given
