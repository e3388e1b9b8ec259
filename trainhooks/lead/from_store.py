"""From stores to verdicts: read what a run kept and hand it to the analysis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainhooks.lead import RunAnalysis, Series, analyze_run, thinned
from trainhooks.lead.draws import DRAWS
from trainhooks.lead.kept_sums import VALUES, kept_reading
from trainhooks.lead.run_analysis import analyze_reading
from trainhooks.lead.trajectory import Trajectory
from trainhooks.probe import frequency_target, token_mask
from trainhooks.probe.row_selection import settings_of_run
from trainhooks.store import Store, open_store

LEAST_RECORDS = 3


def analyze_store(
    store: str | Path | Store,
    *,
    q: Sequence[float] = (0.5, 0.9),
    draws: int = DRAWS,
    seed: int = 0,
    max_records: int | None = None,
    trajectory: Trajectory | None = None,
    picture: bool = True,
) -> RunAnalysis:
    """Lead, direction and onsets of a store against its corpus counts (see `analyze_run`).

    From its snapshots; where it has fewer than three, from what `trainhooks analyze` kept in their place, which is of
    99 draws at seed 0. `picture` as `analyze_run`. `trajectory` are snapshots of this store that were read already: the
    analysis is then of these.

    Raises ValueError, with the store's path, where it has neither or no token counts, and as
    `analyze_run`.
    """
    kept = store if isinstance(store, Store) else open_store(store)
    if kept.token_counts is None:
        raise ValueError(f"{kept.where} holds no token counts: {_again(kept, 'with counts')} to ask for a verdict.")
    try:
        if len(kept.snapshots) >= LEAST_RECORDS:
            options: dict[str, Any] = {"q": tuple(q), "draws": draws, "seed": seed, "max_records": max_records}
            options["picture"] = picture
            found = _from_snapshots(kept, trajectory or kept.snapshots, **options)
            return _with_audit(found, kept)
        if "lead.inner" in kept.names:
            found = _from_products(kept, q=tuple(q), draws=draws, seed=seed, max_records=max_records)
            return _with_audit(found, kept)
    except ValueError as error:
        raise ValueError(f"{kept.where}: {error}") from error  # which one, where several are given
    raise ValueError(
        f"{kept.where} holds {len(kept.snapshots)} snapshots; a verdict needs {LEAST_RECORDS} or more. "
        + (
            "What analyze keeps in their place is not in it: it had fewer than 3 checkpoints or 16 counted tokens, or "
            "is of an older version. Analyze the suite again, with all its checkpoints."
            if _is_analysis(kept)
            else "Record longer, or with a denser snapshot_schedule."
        )
    )


def _with_audit(run: RunAnalysis, store: Store) -> RunAnalysis:
    """The same with what the audit before the analysis found, and what of it puts the run in doubt."""
    kept = store.attributes.get("audit", ())
    findings = [one for one in kept if isinstance(one, Mapping)] if isinstance(kept, Sequence) else []
    told = [(f"{one.get('kind')}: {one.get('message')}", bool(one.get("doubtful"))) for one in findings]
    doubts = tuple(words for words, doubtful in told if doubtful)
    return replace(run, findings=tuple(words for words, _ in told), doubts=doubts)


def _is_analysis(store: Store) -> bool:
    return "suite" in store.attributes and "final_step" in store.attributes


def _again(store: Store, how: str) -> str:
    return f"analyze the suite again {how} (--counts)" if _is_analysis(store) else f"record {how} (counts=)"


def counted_rows(store: Store) -> tuple[torch.Tensor, torch.Tensor]:
    """The corpus counts, and the rows that a verdict is on."""
    counts = torch.from_numpy(np.asarray(store.token_counts))
    return counts, token_mask(counts, **settings_of_run(store.attributes))


def _rates(store: Store) -> Series | None:
    rates = store["learning_rate"] if "learning_rate" in store.names else np.empty(0)
    return Series(store.steps, rates) if np.isfinite(rates).any() else None


def _from_snapshots(store: Store, trajectory: Trajectory, **options: Any) -> RunAnalysis:
    counts, mask = counted_rows(store)
    found = analyze_run(
        trajectory,
        frequency_target(counts, mask=mask).numpy(),
        mask=mask.numpy(),
        learning_rate=_rates(store),
        **options,
    )
    return replace(found, records_total=len(store.snapshots))


def _from_products(
    store: Store, *, q: tuple[float, ...], draws: int, seed: int, max_records: int | None
) -> RunAnalysis:
    if (draws, seed) != (DRAWS, 0):
        raise ValueError(
            f"draws={draws} and seed={seed} were asked for; without matrices the store has {DRAWS} draws at seed 0. "
            "Leave them out, or analyze the suite again with snapshots (--snapshots)."
        )
    steps = np.asarray(store.steps)
    values = {name: np.asarray(store[name]) for name in VALUES}
    kept = thinned(steps, limit=max_records or len(steps))
    kept = np.union1d(kept, np.flatnonzero(steps == values["lead.cut_step"][0]))
    values = {name: value[kept] for name, value in values.items()}
    reading = kept_reading(values, steps=steps[kept], rows=int(counted_rows(store)[1].sum()), dims=store.dim)
    return analyze_reading(
        reading, records=len(steps), vocab=len(np.asarray(store.token_counts)), q=q, learning_rate=_rates(store)
    )
