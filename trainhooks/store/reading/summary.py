"""What is in a store, as plain JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from trainhooks.core.variable import Variable
from trainhooks.store.format.root import FORMAT

if TYPE_CHECKING:

    class _Summarized(Protocol):
        """What a summary asks of a store: see `trainhooks.store.reading.reader.Store`."""

        @property
        def where(self) -> str: ...
        @property
        def steps(self) -> np.ndarray: ...
        @property
        def snapshot_steps(self) -> np.ndarray: ...
        @property
        def snapshots(self) -> Any: ...
        @property
        def vocab(self) -> int: ...
        @property
        def dim(self) -> int: ...
        @property
        def sketch_size(self) -> int: ...
        @property
        def groups(self) -> Sequence[str]: ...
        @property
        def precision(self) -> Any: ...
        @property
        def complete(self) -> bool: ...
        @property
        def restarts(self) -> Any: ...
        @property
        def gaps(self) -> Any: ...
        @property
        def dropped(self) -> int: ...
        @property
        def waiting(self) -> int: ...
        @property
        def holder(self) -> Any: ...
        @property
        def profile(self) -> Any: ...
        @property
        def disk_bytes(self) -> int: ...
        @property
        def kept(self) -> Any: ...
        @property
        def attributes(self) -> Any: ...

        def __getitem__(self, name: str) -> np.ndarray: ...

else:
    _Summarized = Any


def summarize(store: _Summarized, *, variables: Sequence[Variable]) -> dict[str, Any]:
    """Steps, snapshots, shapes, dtypes, bytes, provenance and variables of a store; only JSON's own types.

    `durable` is the last step that is safe, `in_journal` counts the records that are not folded, `holder` says who
    writes the store (None: nobody), `profile` how its first shard is compressed (None: it has none).
    `disk_bytes` is what its files take, `raw_bytes` what the same numbers take uncompressed. A scalar variable also
    has its first and last value that was measured, where there is one.
    """
    shapes = {"output_embedding": [len(store.snapshots), store.vocab, store.dim]} if len(store.snapshots) else {}
    if store.sketch_size:
        shapes["sketch"] = [len(store.steps), len(store.groups), store.sketch_size]
    about = {variable.name: _describe(store, variable) for variable in variables}
    raw = 8 * (len(store.steps) + len(store.snapshots) * (1 + store.vocab))
    raw += 4 * sum(int(np.prod(shape)) for shape in shapes.values())
    raw += sum(int(np.prod(v["shape"])) * np.dtype(v["dtype"]).itemsize for v in about.values())
    return {
        "path": store.where,
        "format": FORMAT,
        "closed": store.complete,
        "attempts": len(store.restarts) + 1,
        "durable": int(store.steps[-1]) if len(store.steps) else None,
        "dropped": store.dropped,
        "in_journal": store.waiting,
        "holder": store.holder,
        "profile": store.profile,
        "records": len(store.steps),
        "steps": store.steps.tolist(),
        "snapshots": len(store.snapshots),
        "snapshot_steps": store.snapshot_steps.tolist(),
        "vocab": store.vocab,
        "dim": store.dim,
        "groups": list(store.groups),
        "precision": store.precision,
        "shapes": shapes,
        "dtypes": dict.fromkeys(shapes, "float32"),
        "disk_bytes": store.disk_bytes,
        "raw_bytes": raw,
        "restarts": store.restarts,
        "gaps": store.gaps,
        "kept": store.kept,
        "variables": about,
        "provenance": store.attributes,
    }


def _describe(store: _Summarized, variable: Variable) -> dict[str, Any]:
    values = store[variable.name]
    about: dict[str, Any] = {
        "dims": ["step", *variable.dims],
        "shape": list(values.shape),
        "dtype": variable.dtype,
        "unit": variable.unit,
        "description": variable.description,
        "whole_run": variable.whole_run,
    }
    if not variable.dims:
        measured = values[np.isfinite(values)] if values.dtype.kind == "f" else values[values != -1]
        if len(measured):
            about |= {"first": float(measured[0]), "last": float(measured[-1])}
    return about
