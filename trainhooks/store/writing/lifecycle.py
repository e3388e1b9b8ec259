"""How a writer comes to its store: create it, overwrite it, or resume it after a cut."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from trainhooks.store.errors import StoreError
from trainhooks.store.format.arrays import of_length, write_metadata
from trainhooks.store.format.chunks import read_rows, write_fixed, write_rows
from trainhooks.store.format.compaction_note import NOTE, finish_compaction
from trainhooks.store.format.integrity import check_files, chunk_length
from trainhooks.store.format.journal import complete_entries, list_pieces
from trainhooks.store.format.kept import BRANCH, drop_surplus, keep, settle_branches
from trainhooks.store.format.layout import GROUP, SNAPSHOT_STEP, STEP, TOKEN_COUNT, TOKEN_TEXT, Layout, differences
from trainhooks.store.format.root import (
    MANIFEST,
    METADATA,
    SPARE,
    Gap,
    Restart,
    Root,
    commit,
    drop_manifests,
    is_store,
    read_manifest,
    read_root,
)
from trainhooks.store.format.schema import array_metadata, array_specs
from trainhooks.store.format.validation import missing_value
from trainhooks.store.reading.proof import last_chunks, misfits
from trainhooks.store.storage.base import JOURNAL, LOCK, TEMPORARY, Storage
from trainhooks.store.storage.local import LocalStorage
from trainhooks.store.storage.opening import is_url, open_storage
from trainhooks.store.storage.zarr_store import ManifestStore, read_array
from trainhooks.store.writing.torn_tail import drop_torn_tail

MODES = ("create", "overwrite", "resume")


def check_place(path: str | Path, *, mode: str) -> None:
    """Whether a writer could open `path` in this `mode`; nothing stays behind.

    Raises ValueError for an unknown mode and StoreError as `StoreWriter` would.
    """
    if mode not in MODES:
        raise ValueError(f"mode {mode!r} is not known; use one of {', '.join(MODES)}.")
    if is_url(path):
        _check_url(open_storage(path), mode=mode)
        return
    path = Path(path)
    ancestor = path.absolute()
    while not os.path.lexists(ancestor):
        ancestor = ancestor.parent
    if not os.path.isdir(ancestor) and ancestor != path.absolute():
        raise StoreError(f"cannot create the store {path}: {ancestor} is no folder. Choose another path.")
    if mode == "resume":
        read_root(LocalStorage(path))
    else:
        is_taken(LocalStorage(path), overwrite=mode == "overwrite")
    try:
        with tempfile.TemporaryFile(dir=ancestor):
            pass
    except OSError as error:
        raise StoreError(f"cannot write the store {path}: {error}. Choose another path.") from error


def _check_url(storage: Storage, *, mode: str) -> None:
    probe = f".{uuid.uuid4().hex}{TEMPORARY}"
    try:
        if mode == "resume":
            read_root(storage)
        else:
            is_taken(storage, overwrite=mode == "overwrite")
        storage.put(probe, b"")
        storage.delete(probe)
    except OSError as error:
        raise StoreError(f"cannot write the store {storage}: {error}. Check the URL and the credentials.") from error


def create(storage: Storage, layout: Layout, *, overwrite: bool) -> tuple[Root, ManifestStore]:
    """Lay an empty store out in `storage`.

    Raises StoreError where something is there that must not be replaced.
    """
    taken = is_taken(storage, overwrite=overwrite)
    # first of all the mark that this folder is ours and holds nothing yet: an interrupted creation can be overwritten,
    # and what is left of an older store cannot be taken for this one
    root, _ = commit(storage, Root(layout=layout, provenance=layout.provenance), {}, spare=False)
    if taken:
        _remove_contents(storage, but=root.manifest)
    store = ManifestStore(storage)
    contents = _fixed_contents(layout)
    arrays: dict[str, dict[str, Any]] = {}
    for spec in array_specs(layout):
        arrays[spec.name] = array_metadata(spec)
        write_metadata(store, spec.name, arrays[spec.name])
        if spec.name in contents:
            write_fixed(store, spec.name, arrays[spec.name], contents[spec.name])
    root, size = commit(storage, replace(root, arrays=arrays), store.files)
    drop_manifests(storage, but=root.manifest)
    store.bytes_written += size
    return root, store


def resume(
    storage: Storage, layout: Layout, *, restart_step: int | None, recorded: int | None = None
) -> tuple[Root, ManifestStore]:
    """Cut an existing store after `restart_step` (None: keep everything) and make its arrays ready to go on.

    `recorded` is the last record that the run had made by then; where the store ends before it, the gap is noted.

    What is torn at the journal's end is dropped, and said. The journal's files that are cut no longer count; the caller
    deletes them. The records that they and the arrays
    lose are kept aside before the cut is committed, see `trainhooks.store.format.kept`.

    Raises StoreError where there is no store, or its layout is another one (every difference is listed).
    """
    root = read_root(storage)
    store = ManifestStore(storage, files=read_manifest(storage, root))
    root = finish_compaction(store, root)
    check_files(storage, root)
    found = [*differences(root.layout, layout), *_token_differences(store, root, layout)]
    if found:
        raise StoreError(
            f"{storage} was made with another layout; go on with the same one, or write to another path:\n- "
            + "\n- ".join(found)
        )
    drop_torn_tail(storage, root)
    suspect = misfits(store, root, last_chunks(root))
    for key in [key for key, why in suspect.items() if why == "proven"]:
        store.relist(key)
        del suspect[key]
    before, listed = root, dict(store.files)
    root, lost = _cut(root, layout, store, restart_step=restart_step, recorded=recorded)
    drop_beyond(store, root)
    left = [f"{key} is {why}" for key, why in suspect.items() if key in store.files]
    if left:
        raise StoreError(
            f"{storage} is not of one moment (stale: whole, but neither as committed nor what the journal adds):\n- "
            + "\n- ".join(left)
            + "\n`trainhooks verify --repair` cuts stale chunks away; or go on from a step before them."
        )
    branches = settle_branches(storage, before)
    if lost:
        keep(ManifestStore(storage, files=listed), before, root, lost, branches)
    root, _ = commit(storage, root, store.files)
    drop_surplus(storage, root)
    make_as_committed(store, root)
    root, _ = commit(storage, root, store.files)
    drop_manifests(storage, but=root.manifest)
    return root, store


def drop_beyond(store: ManifestStore, root: Root) -> None:
    """List no chunks any more that lie beyond the root's shapes."""
    for name in _growing(root):
        for key in _beyond(root.arrays[name], [key for key in store.files if key.startswith(f"{name}/c/")]):
            del store.files[key]


def make_as_committed(store: ManifestStore, root: Root) -> None:
    """Make the files say what the committed root says: after a cut, and after a fold that was interrupted."""
    for name in _growing(root):
        metadata = root.arrays[name]
        for key in [key for key in store.storage.list(name) if "/c/" in key and key not in store.files]:
            store.storage.delete(key)
        write_metadata(store, name, metadata)
    for variable in root.layout.variables:
        if variable.whole_run and root.records:
            shape = (root.records, *root.layout.row_shape(variable))
            values = np.full(shape, missing_value(variable.dtype), dtype=variable.dtype)
            write_rows(store, variable.name, root.arrays[variable.name], values, start=0)


def _growing(root: Root) -> Iterator[str]:
    return (spec.name for spec in array_specs(root.layout) if spec.dims[0] in (STEP, SNAPSHOT_STEP))


def _beyond(metadata: Mapping[str, Any], keys: list[str]) -> list[str]:
    """Those chunk keys (name/c/0/...) that hold nothing of the array's shape."""
    chunks = -(-metadata["shape"][0] // chunk_length(metadata))
    return [key for key in keys if int(key.rpartition("/c/")[2].split("/")[0]) >= chunks]


def folded_steps(store: ManifestStore, root: Root, name: str) -> np.ndarray:
    """The steps (`step` or `snapshot_step`) that are folded into the arrays, int64; empty where there are none."""
    length = root.snapshots if name == SNAPSHOT_STEP else root.records
    if not length:
        return np.empty(0, dtype=np.int64)
    return read_rows(store, name, root.arrays[name])


def _cut(
    root: Root, layout: Layout, store: ManifestStore, *, restart_step: int | None, recorded: int | None
) -> tuple[Root, list[int]]:
    """The root after the cut, not committed yet, and the steps of the records that go."""
    last = np.inf if restart_step is None else restart_step
    steps = folded_steps(store, root, STEP)
    records = int((steps <= last).sum())
    snapshot_steps = folded_steps(store, root, SNAPSHOT_STEP)
    snapshots = int((snapshot_steps <= last).sum())
    folded = int(max(steps, default=-1))
    entries = complete_entries(
        list_pieces(store.storage), root.restarts, (folded, int(max(snapshot_steps, default=-1)))
    )
    kept = [entry.step for entry in entries if folded < entry.step <= last]
    lost = sorted({int(step) for step in steps[records:]} | {entry.step for entry in entries if entry.step > last})
    waiting = len(kept)
    end = max([*(int(step) for step in steps[:records][-1:]), *kept], default=None)
    before, now = root.provenance, layout.provenance
    changed = {key: now[key] for key in now if key not in before or before[key] != now[key]}
    restart = Restart(root.attempt + 1, restart_step, records + waiting, changed)
    lengths = {STEP: records, SNAPSHOT_STEP: snapshots}
    arrays = dict(root.arrays)
    for spec in array_specs(root.layout):
        if spec.dims[0] in lengths:
            arrays[spec.name] = of_length(arrays[spec.name], lengths[spec.dims[0]])
    gaps = _gaps_before(root.gaps, restart_step)
    if recorded is not None and (end is None or end < recorded):
        gaps = (*gaps, Gap(restart.attempt, end, recorded))
    restarts = (*root.restarts, restart)
    cut = replace(root, attempt=restart.attempt, restarts=restarts, gaps=gaps, complete=False, arrays=arrays)
    return cut, lost


def _gaps_before(gaps: tuple[Gap, ...], step: int | None) -> tuple[Gap, ...]:
    """The gaps, or what a cut after `step` leaves of them."""
    if step is None:
        return gaps
    left = (gap for gap in gaps if (-1 if gap.after is None else gap.after) < step)
    return tuple(replace(gap, until=min(gap.until, step)) for gap in left)


def is_taken(storage: Storage, *, overwrite: bool) -> bool:
    """Whether a store is there that may be replaced. Raises StoreError where something may not be."""
    if isinstance(storage, LocalStorage) and storage.path.exists() and not storage.path.is_dir():
        raise StoreError(f"{storage} is a file; a store is a folder. Choose another path.")
    # what a creation leaves that was stopped at once is nothing
    if all(
        name in (LOCK, SPARE) or MANIFEST.fullmatch(name) or name.endswith(".partial") for name in storage.list_dir()
    ):
        return False
    if not is_store(storage):
        raise StoreError(f"{storage} holds files and is not a trainhooks store. Choose an empty or a new folder.")
    if not overwrite:
        raise StoreError(
            f'{storage} holds a store already. Pass mode="overwrite" to replace it, or mode="resume" to go on with it.'
        )
    return True


def _remove_contents(storage: Storage, *, but: str) -> None:
    """Delete the arrays, the journal, what was kept aside, and the manifests but one; other files stay."""
    for name in list(storage.list_dir()):
        ours = name in (JOURNAL, NOTE) or BRANCH.fullmatch(name) or (MANIFEST.fullmatch(name) and name != but)
        if ours or storage.exists(f"{name}/{METADATA}"):
            storage.delete(name)


def _fixed_contents(layout: Layout) -> Mapping[str, np.ndarray]:
    # StringDType: fixed-width text would lose a token's trailing NUL
    text = np.dtypes.StringDType()
    contents = {GROUP: np.array(list(layout.groups), dtype=text)}
    if layout.token_count is not None:
        contents[TOKEN_COUNT] = layout.token_count.astype(np.int64)
    if layout.token_text is not None:
        contents[TOKEN_TEXT] = np.array(list(layout.token_text), dtype=text)
    return contents


def _token_differences(store: ManifestStore, root: Root, layout: Layout) -> list[str]:
    """Token counts and text that the run gives and the store does not hold in the same way."""
    given = {name: value for name, value in _fixed_contents(layout).items() if name in (TOKEN_COUNT, TOKEN_TEXT)}
    found = []
    for name, value in given.items():
        if name not in root.arrays:
            found.append(f"{name}: in the run, not in the store")
        elif not np.array_equal(read_array(store, name, root.arrays[name]), value):
            found.append(f"{name}: other values in the store than in the run")
    return found
