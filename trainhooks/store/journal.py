"""The journal: one safetensors file for each record that is not in the arrays yet.

A record is acknowledged by the rename that puts its file in place. The name says what a scan needs:
`<step, 12 digits>-<attempt, 4 digits>-<record or snapshot>.safetensors`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from trainhooks.store.errors import StoreError
from trainhooks.store.files import TEMPORARY, replace_file, sync
from trainhooks.store.layout import SNAPSHOT
from trainhooks.store.precision import unpack
from trainhooks.store.root import FORMAT, JOURNAL, Restart

_NAME = re.compile(r"(?P<step>\d{12,})-(?P<attempt>\d{4,})-(?P<kind>record|snapshot)\.safetensors")


@dataclass(frozen=True, order=True)
class Entry:
    """A record's file in the journal."""

    step: int
    attempt: int
    has_snapshot: bool
    path: Path

    def survives(self, restarts: Sequence[Restart]) -> bool:
        """Whether no later attempt has cut this record away."""
        return all(
            restart.restart_step is None or self.step <= restart.restart_step
            for restart in restarts
            if restart.attempt > self.attempt
        )


def write_entry(store: Path, arrays: Mapping[str, np.ndarray], *, step: int, attempt: int) -> tuple[Entry, int]:
    """Put a record's arrays into the journal, durably; returns its entry and its bytes."""
    has_snapshot = SNAPSHOT in arrays
    kind = "snapshot" if has_snapshot else "record"
    path = store / JOURNAL / f"{step:012d}-{attempt:04d}-{kind}.safetensors"
    # safetensors writes the buffer as it lies in memory, whatever its strides say
    dense = {name: np.require(array, requirements="C") for name, array in arrays.items()}
    metadata = {"format": str(FORMAT), "step": str(step), "attempt": str(attempt)}
    size = replace_file(path, lambda temporary: save_file(dense, temporary, metadata=metadata))
    sync(path.parent)
    return Entry(step, attempt, has_snapshot, path), size


def scan(store: Path, restarts: Sequence[Restart]) -> list[Entry]:
    """The journal's records in order of steps, without those that a later attempt has cut."""
    folder = store / JOURNAL
    if not folder.is_dir():
        return []
    found = ((path, _NAME.fullmatch(path.name)) for path in folder.iterdir())
    entries = [
        Entry(int(match["step"]), int(match["attempt"]), match["kind"] == "snapshot", path)
        for path, match in found
        if match
    ]
    return sorted(entry for entry in entries if entry.survives(restarts))


def clean(store: Path, *, keep: Sequence[Entry]) -> None:
    """Delete from the journal all but `keep`: folded or cut records, and files whose writing was cut short."""
    kept = {entry.path.name for entry in keep}
    for path in (store / JOURNAL).iterdir():
        ours = _NAME.fullmatch(path.name) or path.name.endswith(TEMPORARY)
        if ours and path.name not in kept:
            path.unlink(missing_ok=True)


class JournalRecord:
    """A record in the journal, memory-mapped; it stays readable when the file is folded and deleted.

    Raises FileNotFoundError where the file has gone, StoreError where it is damaged.
    """

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        try:
            self._file = safe_open(entry.path, framework="np")
            self.names = frozenset(self._file.keys())
        except SafetensorError as error:
            raise StoreError(
                f"the record in {entry.path} is damaged ({error}). Delete that file to go on without it."
            ) from error

    def array(self, name: str) -> np.ndarray:
        """An array of the record, as it was written; KeyError where the record has none."""
        if name not in self.names:
            raise KeyError(name)
        array: np.ndarray = self._file.get_tensor(name)
        return array

    def rows(self, rows: slice) -> Float32[np.ndarray, "row dim"]:
        """Some rows of the record's matrix."""
        part = self._file.get_slice(SNAPSHOT)[rows]
        return unpack(part) if part.dtype == np.uint16 else part
