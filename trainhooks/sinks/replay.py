"""A store's records given to a sink again, as if the run took place now: what is made offline is what is made live."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from trainhooks.core.schedule import Schedule
from trainhooks.core.variable import Variable
from trainhooks.sinks.base import Record, Sink, entry_labels
from trainhooks.store import Layout, Store

MOST_BYTES = 1 << 30
"""Of one variable, in memory; a vector variable that takes more over the run is left out, and returned."""


def replay(
    store: Store,
    sink: Sink,
    *,
    matrices: Schedule | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Open `sink` on a store's layout, write every record, finish and close it; returns variables that were too large.

    Records have their matrix where `matrices` fires, and the last one that there is; each is read once.
    """
    layout, steps = store_layout(store), store.steps
    live = [variable for variable in layout.variables if not variable.whole_run]
    large = [v.name for v in live if v.dims and 8 * len(steps) * _entries(layout, v) > MOST_BYTES]
    values = {v.name: store[v.name] for v in live if v.name not in large}
    labels = entry_labels(layout)
    wanted = _with_matrix(store, matrices)
    sink.check()
    sink.open(layout, restart_step=-1)
    try:
        for row, step in enumerate(steps.tolist()):
            sink.write(
                Record(
                    step,
                    {name: np.asarray(array[row]) for name, array in values.items()},
                    groups=layout.groups,
                    snapshot=store.output_embedding(step) if step in wanted else None,
                    labels=labels,
                )
            )
            progress(row + 1, len(steps))
        final = {v.name: store[v.name] for v in layout.variables if v.whole_run}
        if final and len(steps) and store.complete:
            sink.finish(final)
    finally:
        sink.close()
    return large


def store_layout(store: Store) -> Layout:
    """The layout with which a store was made, with what is said of its tokens."""
    return replace(
        store.layout, token_count=store.token_counts, token_text=store.token_texts, attributes=store.attributes
    )


def _entries(layout: Layout, variable: Variable) -> int:
    return int(np.prod(layout.row_shape(variable)))


def _with_matrix(store: Store, matrices: Schedule | None) -> frozenset[int]:
    """The steps whose matrix is read."""
    steps = store.snapshot_steps.tolist()
    return frozenset(step for step in steps if matrices is not None and (matrices(step) or step == steps[-1]))
