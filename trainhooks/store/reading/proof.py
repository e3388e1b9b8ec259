"""Whether a chunk that is not what its manifest lists is of this store's moment: only what is proven may count.

A fold that was interrupted leaves a chunk with rows behind the committed end, and those rows still wait in the journal:
equal bit for bit, they prove the chunk, for a fold writes all rows of a chunk at once, and never fewer. Anything else
that is whole and does not fit is of another moment, as in a copy whose files were read one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from trainhooks.store.errors import StoreError
from trainhooks.store.format.arrays import growing_names, snapshot_names, stacked
from trainhooks.store.format.chunks import read_chunk
from trainhooks.store.format.integrity import chunk_length, fits
from trainhooks.store.format.journal import JournalEntry, JournalRecord, complete_entries, list_pieces
from trainhooks.store.format.layout import SNAPSHOT, SNAPSHOT_STEP, STEP
from trainhooks.store.format.root import Root
from trainhooks.store.format.schema import inner_rows, shard_rows
from trainhooks.store.format.shards import ShardShape
from trainhooks.store.format.validation import missing_value
from trainhooks.store.reading.block_reader import open_shard
from trainhooks.store.storage.checksum import unsealed
from trainhooks.store.storage.zarr_store import ManifestStore


class Proof:
    """What the journal proves of the chunks of `store`, as `root` has committed them."""

    def __init__(self, store: ManifestStore, root: Root) -> None:
        self.store, self.root = store, root
        self._waiting: tuple[list[JournalRecord], list[JournalRecord]] | None = None

    def proves(self, key: str) -> bool:
        """Whether the rows behind the committed end are the waiting journal's, bit for bit, and at least one is there.

        Raises StoreError where the chunk is damaged, FileNotFoundError where it has gone.
        """
        name, number = _split(key)
        metadata = self.root.arrays.get(name, {})
        if name not in (*growing_names(self.root.layout), *snapshot_names(self.root.layout)) or not metadata:
            return False
        end, first = int(metadata["shape"][0]), number * chunk_length(metadata)
        # whole-run variables wait in no journal, and a full chunk is never written again
        if metadata["attributes"].get("whole_run") or not first < end < first + chunk_length(metadata):
            return False
        waiting = self._entries()[name in snapshot_names(self.root.layout)]
        counts: set[int] | None = None
        for behind, wanted, missing in self._parts(key, metadata, end - first, waiting):
            matching = set(_matching(behind, wanted, missing))
            counts = matching if counts is None else counts & matching
        return bool((counts or set()) - {0})

    def _parts(
        self, key: str, metadata: Mapping[str, Any], kept: int, waiting: Sequence[JournalRecord]
    ) -> Iterator[tuple[np.ndarray, np.ndarray, float | int]]:
        """Rows of the chunk behind the first `kept`, what the journal has for them, and what stands for no value."""
        name, number = _split(key)
        room = chunk_length(metadata) - kept
        if name == SNAPSHOT:
            yield from self.tiles(key, kept, waiting[:room])
            return
        dtype = str(metadata["data_type"])
        rows = read_chunk(self.store, name, metadata, number)
        if name in (STEP, SNAPSHOT_STEP):
            wanted = np.array([record.entry.step for record in waiting[:room]], dtype=rows.dtype)
        else:
            wanted = stacked(waiting[:room], name, rows.shape[1:], dtype).astype(rows.dtype)
        yield rows[kept:], wanted, missing_value(dtype)

    def tiles(
        self, key: str, kept: int, waiting: Sequence[JournalRecord]
    ) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
        """As `_parts`, of each inner chunk of a shard."""
        layout = self.root.layout
        shape = ShardShape(layout.block, shard_rows(layout), layout.dim, inner_rows(layout))
        shard = open_shard(self.store.storage, key, shape)
        top = int(key.split("/")[-2]) * shape.rows
        for chunk in range(-(-min(shape.rows, layout.vocab - top) // shape.inner_rows)):
            start = top + chunk * shape.inner_rows
            rows = slice(start, min(start + shape.inner_rows, top + shape.rows, layout.vocab))
            values = shard.present(chunk)[: rows.stop - rows.start, :, kept:].transpose(2, 0, 1)
            wanted = [record.rows(rows) for record in waiting]
            yield values, np.array(wanted, dtype=np.float32).reshape(-1, *values.shape[1:]), float("nan")

    def _entries(self) -> tuple[list[JournalRecord], list[JournalRecord]]:
        """Records, and snapshots, that wait to be folded, up to the first that is torn."""
        if self._waiting is None:
            ends = self._end(STEP), self._end(SNAPSHOT_STEP)
            entries = complete_entries(list_pieces(self.store.storage), self.root.restarts, ends)
            records = [entry for entry in entries if entry.step > ends[0]]
            matrices = [entry for entry in entries if entry.has_snapshot and entry.step > ends[1]]
            self._waiting = self._opened(records), self._opened(matrices)
        return self._waiting

    def _end(self, name: str) -> int:
        """The last step that is folded, of the committed rows; -1 where there is none."""
        metadata = self.root.arrays.get(name)
        if metadata is None or not metadata["shape"][0]:
            return -1
        end = int(metadata["shape"][0]) - 1
        length = chunk_length(metadata)
        return int(read_chunk(self.store, name, metadata, end // length)[end % length])

    def _opened(self, entries: Sequence[JournalEntry]) -> list[JournalRecord]:
        opened = []
        for entry in entries:
            try:
                record = JournalRecord.open(self.store.storage, entry, self.root.layout)
                _ = record.names
            except (FileNotFoundError, StoreError):
                break
            opened.append(record)
        return opened


def is_newer(store: ManifestStore, root: Root, key: str) -> bool:
    """Whether a chunk that does not fit its checksum is what a fold or a finish adds to it before its commit."""
    if root.arrays[_split(key)[0]]["attributes"].get("whole_run"):
        return not root.complete
    try:
        return Proof(store, root).proves(key)
    except (FileNotFoundError, StoreError):
        return False


def misfits(store: ManifestStore, root: Root, keys: Callable[[str], bool]) -> dict[str, str]:
    """Which listed chunks do not fit their checksum: key -> "proven", "stale" (whole and of another moment), "damaged",
    or "missing"; only those for which `keys` says so are read."""
    proof = Proof(store, root)
    found = {}
    for key in sorted(key for key in store.files if "/c/" in key and keys(key)):
        try:
            if fits(store.storage.mmap(key), store.files[key]):
                continue
            found[key] = "proven" if proof.proves(key) else "stale"
            if found[key] == "stale":
                _check_whole(store, root, key)
        except FileNotFoundError:
            found[key] = "missing"
        except StoreError:
            found[key] = "damaged"
    return found


def shows_its_end(store: ManifestStore, root: Root, key: str) -> bool:
    """Whether a chunk has a value in its last committed row, or is of an array that is written once.

    Rows are added in order and a chunk is written whole: a value there says that all rows before it are there. Raises
    StoreError where the chunk is damaged.
    """
    name, number = _split(key)
    metadata = root.arrays[name]
    if name not in (*growing_names(root.layout), *snapshot_names(root.layout)):
        return True
    first = number * chunk_length(metadata)
    row = min(first + chunk_length(metadata), int(metadata["shape"][0])) - 1 - first
    if row < 0:
        return False
    if name == SNAPSHOT:
        return all(not np.isnan(rows[0]).all() for rows, _, _ in Proof(store, root).tiles(key, row, ()))
    rows = read_chunk(store, name, metadata, number)
    missing = rows == -1 if rows.dtype.kind == "i" else np.isnan(rows)
    # what is written at the end of a run reads as missing until then
    return not missing[row].all() or bool(metadata["attributes"].get("whole_run") and missing.all())


def last_chunks(root: Root) -> Callable[[str], bool]:
    """Whether a key is of the last chunk of an array that grows: those that a fold may write anew."""

    def is_last(key: str) -> bool:
        name, number = _split(key)
        metadata = root.arrays[name]
        grows = name in (*growing_names(root.layout), *snapshot_names(root.layout))
        last = (int(metadata["shape"][0]) - 1) // chunk_length(metadata)
        return grows and not metadata["attributes"].get("whole_run") and number == last

    return is_last


def _check_whole(store: ManifestStore, root: Root, key: str) -> None:
    """Raise StoreError where any of a chunk's own checksums does not fit."""
    name, number = _split(key)
    layout = root.layout
    if root.arrays[name]["data_type"] == "string":
        unsealed(store.storage.read(key), where=f"{store.storage}/{key}")
        return
    if name != SNAPSHOT:
        read_chunk(store, name, root.arrays[name], number)
        return
    shape = ShardShape(layout.block, shard_rows(layout), layout.dim, inner_rows(layout))
    shard = open_shard(store.storage, key, shape)
    for chunk in range(shape.chunks):
        shard.values(chunk)


def _split(key: str) -> tuple[str, int]:
    name, _, index = key.partition("/c/")
    return name, int(index.split("/")[0])


def _matching(rows: np.ndarray, wanted: np.ndarray, missing: float | int) -> Iterator[int]:
    """How many records `rows` can be the first of, followed by no value: bit for bit; none where all are missing."""
    for count in range(1, len(wanted) + 1):
        expected = np.full(rows.shape, missing, dtype=rows.dtype)
        expected[:count] = wanted[:count]
        if expected.tobytes() == np.ascontiguousarray(rows).tobytes():
            yield count
