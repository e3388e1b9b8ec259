"""How a writer comes to its store: create it, overwrite it, or resume it after a cut."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import zarr
from zarr.abc.store import Store

from trainhooks.store.errors import StoreError
from trainhooks.store.files import METADATA
from trainhooks.store.fold import clear_whole_run, open_arrays
from trainhooks.store.journal import Entry, scan
from trainhooks.store.layout import GROUP, SNAPSHOT_STEP, STEP, TOKEN_COUNT, TOKEN_TEXT, Layout, differences
from trainhooks.store.root import JOURNAL, Restart, Root, array_metadata, commit, is_store, read_root
from trainhooks.store.schema import array_specs, create_array

MODES = ("create", "overwrite", "resume")


def check_place(path: str | Path, *, mode: str) -> None:
    """Whether a writer could open `path` in this `mode`; nothing stays behind.

    Raises ValueError for an unknown mode and StoreError as `StoreWriter` would.
    """
    path = Path(path)
    if mode not in MODES:
        raise ValueError(f"mode {mode!r} is not known; use one of {', '.join(MODES)}.")
    ancestor = path.absolute()
    while not os.path.lexists(ancestor):
        ancestor = ancestor.parent
    if not os.path.isdir(ancestor) and ancestor != path.absolute():
        raise StoreError(f"cannot create the store {path}: {ancestor} is no folder. Choose another path.")
    if mode == "resume":
        read_root(path)
    else:
        _is_taken(path, overwrite=mode == "overwrite")
    try:
        with tempfile.TemporaryFile(dir=ancestor):
            pass
    except OSError as error:
        raise StoreError(f"cannot write the store {path}: {error}. Choose another path.") from error


def create(path: Path, layout: Layout, store: Store, *, overwrite: bool) -> Root:
    """Lay an empty store out at `path`.

    Raises StoreError where something is there that must not be replaced.
    """
    _make_room(path, overwrite=overwrite)
    (path / JOURNAL).mkdir(parents=True, exist_ok=True)
    root = Root(layout=layout, provenance=layout.provenance)
    # first of all the mark that this folder is ours, so that an interrupted creation can be overwritten
    commit(path, root)
    contents = _fixed_contents(layout)
    for spec in array_specs(layout):
        array = create_array(store, spec)
        if spec.name in contents:
            array[:] = contents[spec.name]
    names = [spec.name for spec in array_specs(layout)]
    root = replace(root, arrays={name: array_metadata(path, name) for name in names})
    commit(path, root)
    return root


def resume(path: Path, layout: Layout, store: Store, *, restart_step: int | None) -> Root:
    """Cut an existing store after `restart_step` (None: keep everything) and make its arrays ready to go on.

    The journal's files that are cut no longer count; the caller deletes them.

    Raises StoreError where there is no store, or its layout is another one (every difference is listed).
    """
    root = read_root(path)
    found = [*differences(root.layout, layout), *_token_differences(store, root, layout)]
    if found:
        raise StoreError(
            f"{path} was made with another layout; go on with the same one, or write to another path:\n- "
            + "\n- ".join(found)
        )
    root = _cut(root, layout, store, restart_step=restart_step, entries=scan(path, root.restarts))
    commit(path, root)
    (path / JOURNAL).mkdir(exist_ok=True)
    arrays = open_arrays(store, layout)
    for name, array in arrays.items():
        wanted = tuple(root.arrays[name]["shape"])
        if array.shape != wanted:
            array.resize(wanted)
    clear_whole_run(arrays, layout)
    return root


def folded_steps(store: Store, root: Root, name: str) -> np.ndarray:
    """The steps (`step` or `snapshot_step`) that are folded into the arrays, int64; empty where there are none."""
    length = root.snapshots if name == SNAPSHOT_STEP else root.records
    if not length:
        return np.empty(0, dtype=np.int64)
    steps: np.ndarray = np.asarray(zarr.open_array(store, path=name, mode="r")[:length], dtype=np.int64)
    return steps


def _cut(root: Root, layout: Layout, store: Store, *, restart_step: int | None, entries: list[Entry]) -> Root:
    last = np.inf if restart_step is None else restart_step
    steps = folded_steps(store, root, STEP)
    records = int((steps <= last).sum())
    snapshots = int((folded_steps(store, root, SNAPSHOT_STEP) <= last).sum())
    folded = steps[-1] if len(steps) else -1
    waiting = sum(1 for entry in entries if folded < entry.step <= last)
    before, now = root.provenance, layout.provenance
    changed = {key: now[key] for key in now if key not in before or before[key] != now[key]}
    restart = Restart(root.attempt + 1, restart_step, records + waiting, changed)
    shapes = {spec.name: list(spec.shape(records=records, snapshots=snapshots)) for spec in array_specs(root.layout)}
    arrays = {
        name: {**metadata, "shape": shapes[name]} if name in shapes else metadata
        for name, metadata in root.arrays.items()
    }
    return replace(root, attempt=restart.attempt, restarts=(*root.restarts, restart), complete=False, arrays=arrays)


def _make_room(path: Path, *, overwrite: bool) -> None:
    if _is_taken(path, overwrite=overwrite):
        _remove_store(path)


def _is_taken(path: Path, *, overwrite: bool) -> bool:
    """Whether a store is there that may be replaced. Raises StoreError where something may not be."""
    if path.exists() and not path.is_dir():
        raise StoreError(f"{path} is a file; a store is a folder. Choose another path.")
    if not path.exists() or not any(child.name != JOURNAL or any(child.iterdir()) for child in path.iterdir()):
        return False  # nothing, or what a creation left that was stopped at once
    if not is_store(path):
        raise StoreError(f"{path} holds files and is not a trainhooks store. Choose an empty or a new folder.")
    if not overwrite:
        raise StoreError(
            f'{path} holds a store already. Pass mode="overwrite" to replace it, or mode="resume" to go on with it.'
        )
    return True


def _remove_store(path: Path) -> None:
    """Delete the arrays and the journal, and last the root that marks the folder; other files stay."""
    for child in path.iterdir():
        ours = child.name == JOURNAL or (child / METADATA).is_file()
        if child.is_dir() and not child.is_symlink() and ours:
            shutil.rmtree(child)
    (path / METADATA).unlink()


def _fixed_contents(layout: Layout) -> Mapping[str, np.ndarray]:
    # StringDType: fixed-width text would lose a token's trailing NUL
    text = np.dtypes.StringDType()
    contents = {GROUP: np.array(list(layout.groups), dtype=text)}
    if layout.token_count is not None:
        contents[TOKEN_COUNT] = layout.token_count.astype(np.int64)
    if layout.token_text is not None:
        contents[TOKEN_TEXT] = np.array(list(layout.token_text), dtype=text)
    return contents


def _token_differences(store: Store, root: Root, layout: Layout) -> list[str]:
    """Token counts and text that the run gives and the store does not hold in the same way."""
    given = {name: value for name, value in _fixed_contents(layout).items() if name in (TOKEN_COUNT, TOKEN_TEXT)}
    found = []
    for name, value in given.items():
        if name not in root.arrays:
            found.append(f"{name}: in the run, not in the store")
        elif not np.array_equal(np.asarray(zarr.open_array(store, path=name, mode="r")[:]), value):
            found.append(f"{name}: other values in the store than in the run")
    return found
