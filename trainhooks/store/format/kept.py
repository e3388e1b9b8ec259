"""What a cut takes away is kept aside until the run has come past it: a branch inside the store, which readers ignore.

A branch is the folder `.kept-<attempt>-<8 hex digits>/`, with that attempt's root (as `root.json`, so that it is no
Zarr group), its manifest, its journal, and every file that the cut or what follows it may change; all others lie in
the store still, and the branch's manifest says whether they are the same. `kept.json` is written last: without it the
folder is nothing. A branch counts once the root notes the restart that it was made for: then the cut is committed.
"""

from __future__ import annotations

import json
import re
import uuid
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from trainhooks.store.errors import StoreError
from trainhooks.store.format.declared import MALFORMED
from trainhooks.store.format.integrity import Files, chunk_length
from trainhooks.store.format.journal import list_pieces, survives
from trainhooks.store.format.kept_storage import BRANCH_ROOT, KeptStorage
from trainhooks.store.format.root import METADATA, Root, read_manifest, read_root
from trainhooks.store.storage.base import JOURNAL, Storage
from trainhooks.store.storage.opening import open_storage
from trainhooks.store.storage.zarr_store import ManifestStore

BRANCH = re.compile(r"\.kept-\d{4,}-[0-9a-f]{8}")
MOST_BRANCHES = 2
MOST_COPIED = 16 << 30
_NOTE = "kept.json"
_NOTE_BYTES = 1 << 12


@dataclass(frozen=True)
class Branch:
    """Records that a cut took from the store: `records` of them, of the steps `first` to `last`.

    `attempt` had them, and the run went on after step `after`. `when` is the time of the cut, as text; `name` is the
    folder and `size` its bytes, those included that the store shares with it.
    """

    name: str
    attempt: int
    after: int
    first: int
    last: int
    records: int
    when: str
    size: int = 0

    def __str__(self) -> str:
        steps = f"step {self.first}" if self.first == self.last else f"steps {self.first} to {self.last}"
        return (
            f"keeps {self.records} records of attempt {self.attempt}, {steps}, {self.size / 1e6:,.1f} MB: the run went "
            f"on after step {self.after}, at {self.when}"
        )

    def remedy(self, storage: object) -> str:
        """How to get the records back, and what becomes of them otherwise."""
        return (
            f"`trainhooks snapshot {storage} --kept --attempt {self.attempt} --out COPY` gets them back; they go when "
            f"the run has recorded step {self.last} again"
        )


def kept_branches(storage: Storage, root: Root) -> list[Branch]:
    """The branches that count, the one that reaches furthest last."""
    found = (_branch(storage, name) for name in _folders(storage))
    cuts = {(restart.attempt - 1, restart.restart_step) for restart in root.restarts}
    counted = [branch for branch in found if branch is not None and (branch.attempt, branch.after) in cuts]
    return sorted(counted, key=lambda branch: (branch.last, branch.attempt))


def _folders(storage: Storage) -> list[str]:
    return [name for name in storage.list_dir() if BRANCH.fullmatch(name)]


def _branch(storage: Storage, name: str) -> Branch | None:
    """The branch in a folder; None where it is not whole, or says what no writer would."""
    try:
        about = json.loads(storage.read(f"{name}/{_NOTE}", 0, _NOTE_BYTES))
        numbers = [about[key] for key in ("attempt", "after", "first", "last", "records")]
        if not all(type(number) is int and 0 <= number < 1 << 63 for number in numbers):
            return None
        attempt, after, first, last, records = numbers
        return Branch(name, attempt, after, first, last, records, str(about["when"])[:40], storage.size(name))
    except (OSError, StoreError, *MALFORMED):
        return None


def settle_branches(storage: Storage, root: Root) -> list[Branch]:
    """Delete what does not count: branches that were not finished, or whose cut never came. Returns the others."""
    branches = kept_branches(storage, root)
    counted = {branch.name for branch in branches}
    for name in _folders(storage):
        if name not in counted:
            storage.delete(name)
    return branches


def keep(store: ManifestStore, before: Root, after: Root, steps: Sequence[int], branches: Sequence[Branch]) -> None:
    """Keep the records of `steps` aside, before the cut from the root `before` to the root `after` is committed.

    `branches` are those that there are. Where it cannot be done (no room, the medium refuses) a warning says so, and
    the cut takes the records away for good.
    """
    storage, cut = store.storage, after.restarts[-1].restart_step or 0
    when = datetime.now(UTC).isoformat(timespec="seconds")
    name = f".kept-{before.attempt:04d}-{uuid.uuid4().hex[:8]}"
    branch = Branch(name, before.attempt, cut, min(steps), max(steps), len(steps), when)
    changing = [key for key in store.files if may_change(key, after)]
    # older branches first: they share files with the store that this cut takes from it
    for older in branches:
        _or_say(storage, older, cut, partial(_hold, store, older, changing))
    _or_say(storage, branch, cut, partial(_write, store, branch, changing, before=before))


def _or_say(storage: Storage, branch: Branch, cut: int, write: Callable[[], None]) -> None:
    try:
        write()
    except OSError as error:
        with suppress(OSError):
            drop(storage, branch)
        warnings.warn(
            f"{storage} goes on after step {cut}, and the {branch.records} records of the steps {branch.first} to "
            f"{branch.last} that attempt {branch.attempt} had could not be kept aside ({error}): they are gone. Make "
            "room, or copy the store with `trainhooks snapshot` before the next such resumption.",
            stacklevel=2,
        )


def drop_surplus(storage: Storage, root: Root) -> None:
    """Delete those of more than two branches that reach least far; a warning says which."""
    for branch in kept_branches(storage, root)[:-MOST_BRANCHES]:
        drop(storage, branch)
        warnings.warn(
            f"{storage} keeps the records of {MOST_BRANCHES} cuts aside; those of attempt {branch.attempt}, steps "
            f"{branch.first} to {branch.last}, reach least far and are gone.",
            stacklevel=2,
        )


def may_change(key: str, root: Root) -> bool:
    """Whether the writer that goes on from this root may write a listed file anew, or delete it."""
    name, _, index = key.partition("/c/")
    metadata = root.arrays[name.removesuffix(f"/{METADATA}")]
    growing = metadata["dimension_names"][0] in ("step", "snapshot_step")
    if not growing or not index:
        return growing
    length = chunk_length(metadata)
    ends = (int(index.split("/")[0]) + 1) * length
    return bool(metadata["attributes"].get("whole_run")) or ends > int(metadata["shape"][0])


def _write(store: ManifestStore, branch: Branch, changing: Sequence[str], *, before: Root) -> None:
    """Raises OSError where there is no room, or the medium refuses."""
    storage = store.storage
    pieces = [piece.key for piece in list_pieces(storage) if survives(piece, before.restarts)]
    # what the run records again takes as much once more
    room, size = storage.room(), sum(store.files[key][0] for key in changing) + storage.size(JOURNAL)
    if room is not None and size > room:
        raise OSError(f"they take {size:,} bytes, and there is room for {room:,} where the run has to record as much")
    for key in (*changing, *pieces):
        _second(storage, key, f"{branch.name}/{key}", size)
    for key, copied in ((METADATA, BRANCH_ROOT), (before.manifest, before.manifest)):
        storage.put(f"{branch.name}/{copied}", storage.read(key))
    storage.settle()
    about = {key: getattr(branch, key) for key in ("attempt", "after", "first", "last", "records", "when")}
    storage.put(f"{branch.name}/{_NOTE}", json.dumps(about).encode())
    storage.settle()


def _second(storage: Storage, key: str, other: str, size: int) -> None:
    """The same file under another key, which is linked where that is possible, else copied; `size` is that of all."""
    if storage.link(key, other):
        return
    room = storage.room()
    if size > MOST_COPIED or (room is not None and 2 * size > room):
        limit = MOST_COPIED if room is None else min(MOST_COPIED, room // 2)
        raise OSError(f"they must be copied and take {size:,} bytes; up to {limit:,} are copied here")
    storage.put(other, storage.mmap(key))


def hold(store: ManifestStore, root: Root, keys: Sequence[str]) -> None:
    """Before the files `keys` are written anew: a branch that shares them with the store gets them as its own.

    Raises OSError where the medium refuses.
    """
    for branch in kept_branches(store.storage, root):
        _hold(store, branch, keys)


def _hold(store: ManifestStore, branch: Branch, keys: Sequence[str]) -> None:
    storage, files = store.storage, store.files
    listed, own = _branch_files(storage, branch.name), set(storage.list(branch.name))
    shared = [key for key in keys if listed.get(key) == files[key] and f"{branch.name}/{key}" not in own]
    for key in shared:
        _second(storage, key, f"{branch.name}/{key}", sum(files[key][0] for key in shared))


def _branch_files(storage: Storage, name: str) -> Files:
    """What a branch's manifest lists; nothing where it is damaged: then the branch cannot be brought back either."""
    branch = KeptStorage(storage, name)
    try:
        return read_manifest(branch, read_root(branch))
    except StoreError:
        return {}


def drop_passed(storage: Storage, branches: Sequence[Branch], *, reached: int) -> list[Branch]:
    """Delete the branches whose last step the run has `reached` again; returns the others."""
    left = []
    for branch in branches:
        if branch.last > reached:
            left.append(branch)
            continue
        try:
            drop(storage, branch)
        except OSError:  # another time
            left.append(branch)
    return left


def drop(storage: Storage, branch: Branch) -> None:
    """Delete a branch: first of all what says that it is one."""
    storage.delete(f"{branch.name}/{_NOTE}")
    storage.delete(branch.name)


def kept_place(path: str | Path | Storage, attempt: int | None = None) -> KeptStorage:
    """A store as it was before a cut, read only. `attempt` had the records; None: those that reach furthest.

    Raises StoreError where there is no store, or nothing of it is kept aside.
    """
    storage = open_storage(path)
    branches = [one for one in kept_branches(storage, read_root(storage)) if attempt in (None, one.attempt)]
    if not branches:
        which = "" if attempt is None else f" of attempt {attempt}"
        raise StoreError(f"{storage} keeps no records{which} aside. `trainhooks inspect` lists what there is.")
    return KeptStorage(storage, branches[-1].name)
