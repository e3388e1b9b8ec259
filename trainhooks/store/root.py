"""The root's metadata: the store's declaration, and the commit that says how far each array counts.

The root's `zarr.json` holds, in one file that is replaced at once, the attributes under "trainhooks" and the
consolidated metadata of every array. An array's own `zarr.json` may be ahead of it; the root is what counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainhooks.store.errors import StoreError
from trainhooks.store.files import METADATA, replace_file, sync
from trainhooks.store.layout import SNAPSHOT_STEP, STEP, Layout
from trainhooks.store.schema import array_specs

FORMAT = 0
KEY = "trainhooks"
JOURNAL = ".journal"


@dataclass(frozen=True)
class Restart:
    """One resumption: the attempt it began, the last step it kept (None: all), records kept, what changed."""

    attempt: int
    restart_step: int | None
    records: int
    changed: Mapping[str, object] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As it stands in the root's attributes."""
        return {
            "attempt": self.attempt,
            "restart_step": self.restart_step,
            "records": self.records,
            "changed": dict(self.changed),
        }


@dataclass(frozen=True)
class Root:
    """What the root declares. `arrays` maps each array's name to its committed Zarr metadata."""

    layout: Layout
    provenance: Mapping[str, Any]
    attempt: int = 0
    restarts: tuple[Restart, ...] = ()
    complete: bool = False
    arrays: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def records(self) -> int:
        """Records folded into the arrays."""
        return self._length(STEP)

    @property
    def snapshots(self) -> int:
        """Snapshots folded into the arrays; 0 where the store keeps none."""
        return self._length(SNAPSHOT_STEP)

    def _length(self, name: str) -> int:
        return int(self.arrays[name]["shape"][0]) if name in self.arrays else 0

    def to_json(self) -> dict[str, Any]:
        """The Zarr v3 group metadata of the root."""
        declared = {
            "format": FORMAT,
            "layout": self.layout.to_json(),
            "provenance": dict(self.provenance),
            "attempt": self.attempt,
            "restarts": [restart.to_json() for restart in self.restarts],
            "complete": self.complete,
        }
        return {
            "zarr_format": 3,
            "node_type": "group",
            "attributes": {KEY: declared},
            "consolidated_metadata": {
                "kind": "inline",
                "must_understand": False,
                "metadata": {name: dict(metadata) for name, metadata in self.arrays.items()},
            },
        }


def commit(path: Path, root: Root) -> int:
    """Replace the root's metadata at once; returns the bytes written."""
    text = json.dumps(root.to_json(), allow_nan=False)
    size = replace_file(path / METADATA, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    sync(path)
    return size


def array_metadata(path: Path, name: str) -> dict[str, Any]:
    """The metadata in an array's own folder, which may be ahead of the root's."""
    document: dict[str, Any] = json.loads((path / name / METADATA).read_text(encoding="utf-8"))
    return document


def is_store(path: Path) -> bool:
    """Whether the folder is one of ours, of whatever format version."""
    try:
        document = json.loads((path / METADATA).read_text(encoding="utf-8"))
        return KEY in document["attributes"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_root(path: Path) -> Root:
    """The committed root of the store at `path`.

    Raises StoreError, with every problem found, where there is no store, or one of another format, or a damaged one.
    """
    try:
        document = json.loads((path / METADATA).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(f"no store at {path}: it has no {METADATA}. Check the path.") from None
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read {path / METADATA}: {error}.") from error
    attributes = document.get("attributes") if isinstance(document, dict) else None
    declared = attributes.get(KEY) if isinstance(attributes, dict) else None
    if not isinstance(declared, dict):
        raise StoreError(
            f'{path} is not a trainhooks store: its attributes have no "{KEY}". Open it with zarr or xarray.'
        )
    if declared.get("format") != FORMAT:
        raise StoreError(
            f"{path} has format {declared.get('format')!r}; this version reads format {FORMAT}. "
            "Install the version of trainhooks that wrote it."
        )
    return _parse(path, document, declared)


def _parse(path: Path, document: Mapping[str, Any], declared: Mapping[str, Any]) -> Root:
    try:
        root = Root(
            layout=Layout.from_json(declared["layout"]),
            provenance=dict(declared["provenance"]),
            attempt=int(declared["attempt"]),
            restarts=tuple(Restart(**restart) for restart in declared["restarts"]),
            complete=bool(declared["complete"]),
            arrays=dict(document["consolidated_metadata"]["metadata"]),
        )
        problems = _array_problems(root)
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise StoreError(
            f"{path / METADATA} is damaged ({type(error).__name__}: {error}). Restore it from a copy."
        ) from error
    if problems:
        raise StoreError(
            f"{path} does not hold what it declares:\n- "
            + "\n- ".join(problems)
            + '\nIf its creation was interrupted, start anew with mode="overwrite".'
        )
    return root


def _array_problems(root: Root) -> list[str]:
    problems = []
    for spec in array_specs(root.layout):
        metadata = root.arrays.get(spec.name)
        if metadata is None:
            problems.append(f"array {spec.name} is missing from the root's consolidated metadata")
            continue
        shape = list(spec.shape(records=root.records, snapshots=root.snapshots))
        wanted = {"shape": shape, "data_type": spec.dtype, "dimension_names": list(spec.dims)}
        problems += [
            f"array {spec.name}: {key} is {metadata.get(key)}, needed {value}"
            for key, value in wanted.items()
            if metadata.get(key) != value
        ]
    return problems
