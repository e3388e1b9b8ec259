"""The root's metadata: the store's declaration, and the commit that says how far each array counts.

The root's `zarr.json` holds, in one file that is replaced at once, the attributes under "trainhooks" and the
consolidated metadata of every array. An array's own `zarr.json` may be ahead of it; the root is what counts. It also
names the manifest, which lists every other file with its size and checksum, and has a checksum of its own.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from trainhooks.store.errors import StoreError
from trainhooks.store.format.declared import MALFORMED, array_problems, bad_key
from trainhooks.store.format.layout import SNAPSHOT_STEP, STEP, Layout
from trainhooks.store.storage.base import Storage
from trainhooks.store.storage.opening import open_storage

FORMAT = 1
KEY = "trainhooks"
METADATA = "zarr.json"
SPARE = ".root.json"
MANIFEST = re.compile(r"\.manifest-(?P<crc32>[0-9a-f]{8})\.json")
_UNSUMMED = b'"checksum": "00000000"'
_SUM = re.compile(rb'"checksum": "([0-9a-f]{8})"')


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
class Gap:
    """Records that the run had made and its store lost: those after step `after` (None: all) up to step `until`.

    The run was killed before they were durable, and `attempt` went on from a checkpoint that knew of them.
    """

    attempt: int
    after: int | None
    until: int

    def __str__(self) -> str:
        since = "all records" if self.after is None else f"the records after step {self.after}"
        return f"{since} up to step {self.until} were lost before attempt {self.attempt}: the run had been killed"


@dataclass(frozen=True)
class Root:
    """What the root declares. `arrays` maps each array's name to its committed Zarr metadata.

    `dropped` counts the records that a full queue turned away, `manifest` is the key of the list of files, `gaps` are
    what was lost before a checkpoint.
    """

    layout: Layout
    provenance: Mapping[str, Any]
    attempt: int = 0
    restarts: tuple[Restart, ...] = ()
    gaps: tuple[Gap, ...] = ()
    complete: bool = False
    dropped: int = 0
    manifest: str = ""
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
            # before anything that a run gives, so that the first match is this one
            "checksum": "00000000",
            "layout": self.layout.to_json(),
            "provenance": dict(self.provenance),
            "attempt": self.attempt,
            "restarts": [restart.to_json() for restart in self.restarts],
            "complete": self.complete,
            "dropped": self.dropped,
            "manifest": self.manifest,
        }
        if self.gaps:
            declared["gaps"] = [asdict(gap) for gap in self.gaps]
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


def commit(
    storage: Storage, root: Root, files: Mapping[str, tuple[int, str]], *, spare: bool = True
) -> tuple[Root, int]:
    """Write the manifest of `files`, then replace the root's metadata at once; returns the root, and bytes written.

    Without `spare` its copy is not written: for a root that holds nothing yet, which could stand in for none.
    """
    listed = {key: list(files[key]) for key in sorted(files)}
    # with the attempt in it, its checksum and so its name are this attempt's own: an earlier one cannot delete it
    manifest = json.dumps({"attempt": root.attempt, "files": listed}, separators=(",", ":")).encode()
    root = replace(root, manifest=f".manifest-{zlib.crc32(manifest):08x}.json")
    size = storage.put(root.manifest, manifest).size
    storage.settle()  # or a power cut could leave a root whose files are gone
    text = json.dumps(root.to_json(), allow_nan=False).encode()
    sealed = text.replace(_UNSUMMED, b'"checksum": "%08x"' % zlib.crc32(text), 1)
    # all that it names is there by now: it may count wherever the root itself has gone bad
    if spare:
        size += storage.put(SPARE, sealed).size
    size += storage.put(METADATA, sealed).size
    storage.settle()  # before anybody deletes what the root before this one needs
    return root, size


def restore_root(storage: Storage) -> bool:
    """Put the spare copy where the root is gone or damaged; whether it was needed.

    Raises StoreError, about the root, where no spare is whole, and where the root is as it was written: of another
    format, or made to declare what no store has.
    """
    try:
        read_root(storage)
    except TornRootError as damage:
        try:
            read_root(storage, key=SPARE)
        except StoreError:
            raise damage from None
        storage.put(METADATA, storage.read(SPARE))
        storage.settle()
        return True
    return False


def mend_spare(storage: Storage) -> bool:
    """Write the spare copy anew where it is damaged and the root is not; whether that was so."""
    if not spare_is_torn(storage):
        return False
    storage.put(SPARE, storage.read(METADATA))
    storage.settle()
    return True


def spare_is_torn(storage: Storage) -> bool:
    """Whether there is a spare copy of the root that is not what was written; stores of before have none."""
    if not storage.exists(SPARE):
        return False
    try:
        read_root(storage, key=SPARE)
    except StoreError:
        return True
    return False


def drop_manifests(storage: Storage, *, but: str) -> None:
    """Delete the manifests that no root names any more."""
    for name in list(storage.list_dir()):
        if MANIFEST.fullmatch(name) and name != but:
            storage.delete(name)


def read_manifest(storage: Storage, root: Root) -> dict[str, tuple[int, str]]:
    """Every file of the store but root, manifest, lock and journal: key -> (bytes, CRC-32 as 8 hex digits).

    Raises StoreError where the manifest is missing or damaged.
    """
    try:
        text = storage.read(root.manifest)
    except FileNotFoundError:
        raise StoreError(f"{storage} has lost its manifest, {root.manifest}. Restore it from a copy.") from None
    if root.manifest != f".manifest-{zlib.crc32(text):08x}.json":
        raise StoreError(f"{storage}/{root.manifest} is damaged: its checksum does not fit. Restore it from a copy.")
    try:
        files = {key: (int(size), str(checksum)) for key, (size, checksum) in json.loads(text)["files"].items()}
    except MALFORMED as error:
        raise StoreError(f"{storage}/{root.manifest} is no list of files ({error}). Restore it from a copy.") from error
    for key in files:
        if bad_key(key, root.arrays):
            raise StoreError(
                f"{storage}/{root.manifest} lists {key!r}, which is no file of a store. Do not use it: it was made so."
            )
    return files


def check_attempt(storage: Storage, attempt: int) -> None:
    """After each read: raise StoreError where the store was cut since it was opened, at this `attempt`.

    It then holds other numbers under the old steps. Also raises as `read_root` does.
    """
    try:
        now = int(json.loads(storage.read(METADATA))["attributes"][KEY]["attempt"])
    except (OSError, ValueError, KeyError, TypeError):
        now = read_root(storage).attempt
    if now != attempt:
        raise StoreError(
            f"{storage} was cut and goes on as attempt {now} since it was opened here, as attempt {attempt}: what is "
            "there now may be of other steps. Call refresh(), or open it again."
        )


def is_store(where: str | Path | Storage) -> bool:
    """Whether a place holds one of our stores, of whatever format version."""
    try:
        return KEY in json.loads(open_storage(where).read(METADATA))["attributes"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


class TornRootError(StoreError):
    """The root is gone, or is not the bytes that were written."""


def read_root(storage: Storage, *, key: str = METADATA) -> Root:
    """The committed root of the store in `storage`; with `key` SPARE its spare copy.

    Raises StoreError, with every problem found, where there is no store, or one of another format, or a damaged one.
    """
    try:
        text = storage.read(key)
        document = json.loads(text)
    except (FileNotFoundError, NotADirectoryError):
        raise TornRootError(f"no store at {storage}: it has no {key}. {_remedy(storage, 'Check the path.')}") from None
    except StoreError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise TornRootError(f"cannot read {storage}/{key}: {error}. {_remedy(storage)}") from error
    attributes = document.get("attributes") if isinstance(document, dict) else None
    declared = attributes.get(KEY) if isinstance(attributes, dict) else None
    if not isinstance(declared, dict):
        raise StoreError(
            f'{storage} is not a trainhooks store: its attributes have no "{KEY}". Open it with zarr or xarray.'
        )
    if declared.get("format") != FORMAT:
        raise StoreError(
            f"{storage} has format {declared.get('format')!r}; this version reads format {FORMAT}. "
            "Install the version of trainhooks that wrote it."
        )
    found = _SUM.search(text)
    if found is None or int(found[1], 16) != zlib.crc32(_SUM.sub(_UNSUMMED, text, count=1)):
        raise TornRootError(f"{storage}/{key} is damaged: its checksum does not fit. {_remedy(storage)}")
    return _parse(storage, document, declared, key=key)


def _remedy(storage: Storage, otherwise: str = "Restore it from a copy.") -> str:
    return f"`trainhooks verify --repair` puts {SPARE} in its place." if storage.exists(SPARE) else otherwise


def _parse(storage: Storage, document: Mapping[str, Any], declared: Mapping[str, Any], *, key: str) -> Root:
    try:
        root = _declared_root(document, declared)
        problems = array_problems(root.layout, root.arrays, records=root.records, snapshots=root.snapshots)
    except MALFORMED as error:
        raise StoreError(
            f"{storage}/{key} is damaged ({type(error).__name__}: {error}). Restore it from a copy."
        ) from error
    if problems:
        raise StoreError(
            f"{storage} does not hold what it declares:\n- "
            + "\n- ".join(problems)
            + '\nIf its creation was interrupted, start anew with mode="overwrite".'
        )
    return root


def _declared_root(document: Mapping[str, Any], declared: Mapping[str, Any]) -> Root:
    """Raises one of `MALFORMED` where a value is of another kind than the format has there."""
    root = Root(
        layout=Layout.from_json(declared["layout"]),
        provenance=dict(declared["provenance"]),
        attempt=_whole(declared["attempt"]),
        restarts=tuple(Restart(**restart) for restart in declared["restarts"]),
        gaps=tuple(Gap(**gap) for gap in declared.get("gaps", ())),
        complete=bool(declared["complete"]),
        dropped=_whole(declared["dropped"]),
        manifest=str(declared["manifest"]),
        # Zarr lets an array go without attributes
        arrays={
            name: {"attributes": {}, **metadata}
            for name, metadata in document["consolidated_metadata"]["metadata"].items()
        },
    )
    if not MANIFEST.fullmatch(root.manifest):
        raise ValueError(f"a manifest is not called {root.manifest!r}")
    for restart in root.restarts:
        _whole(restart.attempt), _whole(restart.records), dict(restart.changed)
        if restart.restart_step is not None:
            _whole(restart.restart_step)
    for gap in root.gaps:
        _whole(gap.attempt), _whole(gap.until), _whole(-1 if gap.after is None else gap.after)
    return root


def _whole(number: object) -> int:
    if isinstance(number, bool) or not isinstance(number, int) or not -1 <= number < 1 << 63:
        raise ValueError(f"{number!r} is no count")
    return number
