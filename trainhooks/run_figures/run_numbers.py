"""All that figures and the report take from one store, read once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainhooks.lead import RunAnalysis
from trainhooks.lead.from_store import LEAST_RECORDS, analyze_store, counted_rows
from trainhooks.lead.run_analysis import LEAST_ROWS
from trainhooks.metrics.group_convergence import convergence_to_final, kept_norms
from trainhooks.run_figures.probed import CountedTokens, ProbedState, probed_states
from trainhooks.run_figures.taken import take
from trainhooks.store import Store, open_store

DISTANCE = "convergence.distance_to_final"


@dataclass(frozen=True)
class RunNumbers:
    """A run as figures see it.

    `values` are the store's variables by name [record, ...], `distance` the one to the final state by group
    [record, group] (None where nothing gives it), `states` the probed matrices in order of steps, `lead` what the
    verdict rests on. `tokens` and `token_texts` are None where the store has no counts or texts; `missing` says by
    subject, in a sentence, what could not be had and why.
    """

    label: str
    steps: np.ndarray
    values: Mapping[str, np.ndarray]
    groups: tuple[str, ...]
    distance: np.ndarray | None
    tokens: CountedTokens | None
    token_texts: Sequence[str] | None
    states: tuple[ProbedState, ...]
    lead: RunAnalysis | None
    vocab: int
    dim: int
    complete: bool
    attributes: Mapping[str, Any]
    facts: Mapping[str, Any] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)

    def series(self, name: str) -> np.ndarray | None:
        """A variable's values; None where the store does not have it or it is NaN throughout."""
        found = self.values.get(name)
        return found if found is not None and np.isfinite(found).any() else None

    def group(self, name: str) -> np.ndarray | None:
        """One group's distance to the final state [record]; None where it is not known."""
        if self.distance is None or name not in self.groups:
            return None
        found: np.ndarray = self.distance[:, self.groups.index(name)]
        return found if np.isfinite(found).any() else None


def read_run(
    store: str | Path | Store, *, label: str | None = None, lead: bool = True, steps: Sequence[int] | None = None
) -> RunNumbers:
    """Read a store for figures. What it does not hold is left out, and said in `missing`.

    `lead=False` leaves the analysis of the lead out, which takes seconds. `steps` are those
    whose matrices are read, () for none, by default up to 40 that are spread over the run.

    Raises StoreError where there is no store, or
    a damaged one, and ValueError for one without a record.
    """
    opened = store if isinstance(store, Store) else open_store(store)
    if not len(opened.steps):
        raise ValueError(f"{opened.where} holds no record yet: run the training, then draw.")
    missing: dict[str, str] = {}
    tokens = _tokens(opened, missing)
    wanted = len(opened.snapshots) and tokens is not None and (steps is None or len(steps))
    taken = take(opened, steps=steps) if wanted else None
    if not len(opened.snapshots):
        missing["snapshots"] = "the store holds no output embeddings (they were not kept)"
    found = None
    if not lead:
        missing["lead"] = "the lead was not asked for"
    else:
        trajectory = taken if taken is not None and len(taken) >= LEAST_RECORDS else None
        try:
            found = analyze_store(opened, trajectory=trajectory, picture=False)
        except ValueError as error:
            missing["lead"] = str(error)
    return RunNumbers(
        label=label or opened.where,
        steps=np.asarray(opened.steps),
        values={name: np.asarray(opened[name]) for name in opened.names},
        groups=opened.groups,
        distance=_distance(opened, missing),
        tokens=tokens,
        token_texts=opened.token_texts,
        states=probed_states(taken, tokens) if taken is not None and tokens is not None else (),
        lead=found,
        vocab=opened.vocab,
        dim=opened.dim,
        complete=opened.complete,
        attributes=opened.attributes,
        facts=_facts(opened),
        missing=missing,
    )


def read_runs(stores: Sequence[str | Path | Store], *, lead: bool = True) -> tuple[RunNumbers, ...]:
    """`read_run` of each, labelled by what tells their paths apart. Raises ValueError for none, or one given twice."""
    if not stores:
        raise ValueError("got no store; give the path of one or several.")
    opened = [store if isinstance(store, Store) else open_store(store) for store in stores]
    paths = [store.where for store in opened]
    if len(set(paths)) < len(paths):
        raise ValueError("a store was given twice; give each run once.")
    return tuple(read_run(one, label=label, lead=lead) for one, label in zip(opened, labels(paths), strict=True))


def labels(paths: Sequence[str]) -> tuple[str, ...]:
    """The shortest ends of the paths that tell them apart, without what all ends share: runs/a/run.zarr is `a`."""
    parts = [[part for part in path.replace("\\", "/").split("/") if part] for path in paths]
    if len(paths) == 1:
        meaning = [part for part in parts[0] if part not in ("run.zarr", "store", "runs")]
        return (meaning[-1] if meaning else paths[0],)
    while min(map(len, parts)) > 1 and len({one[-1] for one in parts}) == 1:
        parts = [one[:-1] for one in parts]
    while min(map(len, parts)) > 1 and len({one[0] for one in parts}) == 1:
        parts = [one[1:] for one in parts]
    return tuple("/".join(one) for one in parts)


def _tokens(store: Store, missing: dict[str, str]) -> CountedTokens | None:
    if store.token_counts is None:
        missing["counts"] = "the store holds no token counts (counts= of the recorder, --counts of analyze)"
        return None
    counts, mask = counted_rows(store)
    if int(mask.sum()) < LEAST_ROWS:
        missing["counts"] = f"only {int(mask.sum())} tokens are counted often enough to fit on"
        return None
    return CountedTokens.of(counts, mask)


def _distance(store: Store, missing: dict[str, str]) -> np.ndarray | None:
    """As stored at the run's end; of one that still runs, to its last record, from the sketches."""
    if DISTANCE in store.names:
        stored = np.asarray(store[DISTANCE], dtype=np.float64)
        if np.isfinite(stored).any():
            return stored
    if store.sketch_size:
        sketch, norms = torch.from_numpy(np.array(store.sketch)), kept_norms(store)
        exact = None if norms is None else torch.from_numpy(norms)
        missing["final"] = "the run has not ended: distances are to its last record so far"
        found = convergence_to_final(sketch, torch.from_numpy(np.array(store.steps)), norms=exact)
        return found[DISTANCE].numpy()
    missing["convergence"] = "the store holds neither distances to the final state nor sketches to take them from"
    return None


def _facts(store: Store) -> dict[str, Any]:
    """What the run's table says of the store itself."""
    return {
        "path": store.where,
        "disk_bytes": store.disk_bytes,
        "records": len(store.steps),
        "snapshots": len(store.snapshots),
        "precision": store.precision,
        "sketch_size": store.sketch_size,
        "restarts": len(store.restarts),
        "gaps": len(store.gaps),
        "dropped": store.dropped,
    }
