"""The journal: what is not in the arrays yet, one safetensors file for each record and piece.

A piece is acknowledged by the rename that puts its file in place, and a record counts once all its pieces are there.
The name says what a scan needs, and the CRC-32 (zlib's) of the file's bytes:
`<step>-<attempt>-<piece>of<pieces>-<record or snapshot>-<crc32>.safetensors`.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt16

from trainhooks.store.errors import StoreError
from trainhooks.store.format.layout import LABEL_COUNTS, SKETCH, SNAPSHOT, Layout
from trainhooks.store.format.precision import unpack
from trainhooks.store.format.root import FORMAT, Restart
from trainhooks.store.storage.base import JOURNAL, TEMPORARY, ChecksumWriter, Storage

# arrays that ranks count apart: those of a record's pieces add up
SUMS = frozenset({SKETCH, LABEL_COUNTS})
_NAME = re.compile(
    r"(?P<step>\d{12,})-(?P<attempt>\d{4,})-(?P<piece>\d{4,})of(?P<pieces>\d{4,})-(?P<kind>record|snapshot)"
    r"-(?P<crc32>[0-9a-f]{8})\.safetensors"
)
_CODES = {"F64": "<f8", "F32": "<f4", "I64": "<i8", "I32": "<i4", "I16": "<i2", "U16": "<u2", "I8": "|i1"}
_LARGE_BYTES = 1 << 18  # what is smaller is written together
_NAMES = {np.dtype(code): name for name, code in _CODES.items()}


@dataclass(frozen=True, order=True)
class Piece:
    """One file of the journal: piece `piece` of `pieces` of a record."""

    step: int
    attempt: int
    piece: int
    pieces: int
    has_snapshot: bool
    key: str

    @property
    def crc32(self) -> str:
        """The checksum of the file's bytes that its name says, eight hexadecimal digits."""
        return self.key.rpartition("-")[2][:8]

    @staticmethod
    def of(key: str) -> Piece | None:
        """The piece that a file's name says it is; None for other files."""
        match = _NAME.fullmatch(key.rpartition("/")[2])
        if match is None:
            return None
        step, attempt, piece, pieces = (int(match[part]) for part in ("step", "attempt", "piece", "pieces"))
        return Piece(step, attempt, piece, pieces, match["kind"] == "snapshot", key)


@dataclass(frozen=True, order=True)
class JournalEntry:
    """A record in the journal, all its pieces in place, in order."""

    step: int
    attempt: int
    has_snapshot: bool
    pieces: tuple[Piece, ...]


def write_piece(
    storage: Storage,
    arrays: Mapping[str, np.ndarray],
    *,
    step: int,
    attempt: int,
    piece: int = 0,
    pieces: int = 1,
    rows: tuple[int, int] | None = None,
    previous: int | None = None,
    has_snapshot: bool,
) -> tuple[Piece, int]:
    """Put one piece of a record into the journal; returns it and its bytes.

    `rows` (start, stop) are those of the matrix that the piece holds, None where it holds none of them. `previous` is
    the step of the record before it, None where there is none or it is not known: so a record
    that goes lost is noticed.
    """
    metadata = {"format": str(FORMAT), "step": str(step), "attempt": str(attempt)}
    metadata |= {"piece": str(piece), "pieces": str(pieces)}
    if rows is not None:
        metadata["rows"] = f"{rows[0]}:{rows[1]}"
    if previous is not None:
        metadata["previous"] = str(previous)
    stem = f"{JOURNAL}/{step:012d}-{attempt:04d}-{piece:04d}of{pieces:04d}"
    stem += "-snapshot" if has_snapshot else "-record"
    key = ""

    def write(file: ChecksumWriter) -> str:
        nonlocal key
        # safetensors keeps the widest numbers first, so that each lies aligned
        ordered = dict(sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0])))
        small = [_header(ordered, metadata)]
        for array in ordered.values():
            if array.nbytes < _LARGE_BYTES:
                small.append(array.tobytes())
            else:
                file.write(b"".join(small))
                small.clear()
                file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        file.write(b"".join(small))
        key = f"{stem}-{file.crc32:08x}.safetensors"
        return key

    size = storage.put_streamed(write).size
    return Piece(step, attempt, piece, pieces, has_snapshot, key), size


def _header(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    document: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, array in arrays.items():
        kind = _NAMES[array.dtype.newbyteorder("<")]
        document[name] = {
            "dtype": kind,
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def list_pieces(storage: Storage) -> list[Piece]:
    """Every piece in the journal, in order."""
    found = (Piece.of(f"{JOURNAL}/{name}") for name in storage.list_dir(JOURNAL))
    return sorted(piece for piece in found if piece is not None)


def complete_entries(
    pieces: Iterable[Piece], restarts: Sequence[Restart], folded: tuple[int, int]
) -> list[JournalEntry]:
    """The records that wait in the journal with all their pieces, in order of steps.

    Without those that a later attempt has cut, those that are `folded` (up to which record, up to which snapshot), and
    those behind a record that is not whole yet.
    """
    records: dict[tuple[int, int], dict[int, Piece]] = defaultdict(dict)
    for piece in pieces:
        waits = piece.step > folded[0] or (piece.has_snapshot and piece.step > folded[1])
        if waits and survives(piece, restarts):
            records[piece.step, piece.attempt].setdefault(piece.piece, piece)
    newest = max((restart.attempt for restart in restarts), default=0)
    entries: list[JournalEntry] = []
    for (step, attempt), parts in sorted(records.items()):
        if any(number not in parts for number in range(next(iter(parts.values())).pieces)):
            if attempt < newest:
                continue  # nobody will complete what a dead attempt left
            break
        if entries and entries[-1].step == step:
            entries.pop()  # the newer attempt counts
        ordered = tuple(parts[number] for number in sorted(parts))
        entries.append(JournalEntry(step, attempt, any(part.has_snapshot for part in ordered), ordered))
    return entries


def survives(piece: Piece, restarts: Sequence[Restart]) -> bool:
    """Whether no later attempt has cut this piece away."""
    return all(
        restart.restart_step is None or piece.step <= restart.restart_step
        for restart in restarts
        if restart.attempt > piece.attempt
    )


def clean(storage: Storage, *, keep: Sequence[JournalEntry]) -> None:
    """Delete from the journal all but `keep`; others' files stay."""
    kept = {piece.key for entry in keep for piece in entry.pieces}
    for name in list(storage.list_dir(JOURNAL)):
        key = f"{JOURNAL}/{name}"
        if Piece.of(key) and key not in kept:
            storage.delete(key)


def drop_cut_short(storage: Storage) -> None:
    """Delete files whose writing was cut short."""
    for name in list(storage.list_dir()):
        if name.endswith(TEMPORARY):
            storage.delete(name)


class JournalPiece:
    """One file of the journal, mapped; its checksum is compared before its first number is used.

    Raises FileNotFoundError where the file has gone, StoreError where it is torn or damaged.
    """

    def __init__(self, storage: Storage, piece: Piece) -> None:
        self.piece = piece
        self._where = f"{storage}/{piece.key}"
        self._bytes = storage.mmap(piece.key)
        self._checked = False
        try:
            self.rows, self.previous, self._arrays = _parse(self._bytes)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._damaged(str(error)) from error

    @property
    def arrays(self) -> Mapping[str, np.ndarray]:
        """The piece's arrays by name, as they were written; read only."""
        if not self._checked:
            found, wanted = f"{zlib.crc32(self._bytes):08x}", self.piece.crc32
            if found != wanted:
                raise self._damaged(f"its bytes have checksum {found}, its name says {wanted}")
            self._checked = True
        return self._arrays

    @property
    def content(self) -> memoryview:
        """The whole file's bytes, its checksum compared. Raises StoreError."""
        _ = self.arrays
        return self._bytes

    def check_fits(self, layout: Layout) -> None:
        """Raise StoreError where the arrays that the header names are none of this layout's."""
        height = max(0, self.rows.stop - self.rows.start)
        wanted = {v.name: (layout.row_shapes[v.name], v.dtype) for v in layout.variables}
        wanted[SKETCH] = (len(layout.groups), layout.sketch_size), "float32"
        wanted[LABEL_COUNTS] = (layout.vocab,), "int64"
        wanted[SNAPSHOT] = (height, layout.dim), "uint16" if self._is_packed else "float32"
        for name in wanted.keys() & self._arrays.keys():
            shape, dtype = wanted[name]
            array = self._arrays[name]
            if array.shape != shape or array.dtype != dtype:
                raise self._damaged(f"{name!r} is {array.dtype} {array.shape}, needed {dtype} {shape}")
        if height and SNAPSHOT not in self._arrays:
            raise self._damaged(f"it names the rows {self.rows.start}:{self.rows.stop} of a matrix and has none")

    @property
    def _is_packed(self) -> bool:
        return SNAPSHOT in self._arrays and self._arrays[SNAPSHOT].dtype == np.uint16

    def _damaged(self, why: str) -> StoreError:
        return StoreError(f"the record in {self._where} is damaged ({why}). Delete that file to go on without it.")


def _parse(content: memoryview) -> tuple[slice, int | None, dict[str, np.ndarray]]:
    """A file's rows of the matrix, the step of the record before it where it says so, and its arrays.

    Raises ValueError and its like where it is not whole.
    """
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(bytes(content[8:start]))
    about = header.pop("__metadata__")
    first, _, last = about.get("rows", "0:0").partition(":")
    previous = int(about["previous"]) if "previous" in about else None
    arrays = {}
    end = 0
    for name, tensor in header.items():
        dtype, shape = np.dtype(_CODES[tensor["dtype"]]), tuple(tensor["shape"])
        begin, stop = tensor["data_offsets"]
        arrays[name] = np.frombuffer(content, dtype, count=math.prod(shape), offset=start + begin).reshape(shape)
        end = max(end, stop)
    if start + end != len(content):
        raise ValueError(f"it has {len(content)} bytes, its header says {start + end}")
    return slice(int(first), int(last)), previous, arrays


def check_chain(pieces: Sequence[JournalPiece], folded: np.ndarray, *, where: str) -> None:
    """Raise StoreError where a record is gone from the journal: the one behind it names it as the one before.

    `pieces` are the first pieces of the records that wait, in order; `folded` are the steps in the arrays.
    """
    there = {int(step) for step in folded[-1:]} | {file.piece.step for file in pieces}
    waiting = [file for file in pieces if not len(folded) or file.piece.step > folded[-1]]
    lost = [file.previous for file in waiting if file.previous is not None and file.previous not in there]
    if lost:
        raise StoreError(
            f"{where} has lost the journal's records of the steps {lost}. Restore them from a copy, or go on without "
            "them: `trainhooks verify --repair`."
        )


class JournalRecord:
    """A record in the journal, all its pieces as one; it stays readable when it is folded and deleted.

    Raises StoreError where a piece does not fit the store's layout.
    """

    def __init__(self, entry: JournalEntry, pieces: Sequence[JournalPiece], layout: Layout) -> None:
        self.entry = entry
        self._pieces = pieces
        for piece in pieces:
            piece.check_fits(layout)
        self._by_rows = sorted(pieces, key=lambda piece: (piece.rows.start, piece.rows.stop))

    @staticmethod
    def open(storage: Storage, entry: JournalEntry, layout: Layout) -> JournalRecord:
        """Map the record's files."""
        if len(entry.pieces) > 1:  # where many ranks write, a block of records is a thousand files
            storage.expect_maps(len(entry.pieces))
        return JournalRecord(entry, [JournalPiece(storage, piece) for piece in entry.pieces], layout)

    @property
    def names(self) -> frozenset[str]:
        """The arrays that the record has."""
        return frozenset[str]().union(*(piece.arrays for piece in self._pieces))

    def array(self, name: str) -> np.ndarray:
        """An array of the record, sketches and label counts added over its pieces; KeyError where it has none."""
        if len(self._pieces) == 1:
            return self._pieces[0].arrays[name]
        found = [piece.arrays[name] for piece in self._pieces if name in piece.arrays]
        if not found:
            raise KeyError(name)
        return np.sum(found, axis=0, dtype=found[0].dtype) if name in SUMS and len(found) > 1 else found[0]

    def rows(self, rows: slice) -> Float32[np.ndarray, "row dim"]:
        """Some rows of the matrix (start and stop given); read only where they lie in one piece as float32.

        Raises StoreError where the record's pieces do not hold each of them once.
        """
        found = self.stored_rows(rows)
        return unpack(found) if found.dtype == np.uint16 else found

    def stored_rows(self, rows: slice) -> Float32[np.ndarray, "row dim"] | UInt16[np.ndarray, "row dim"]:
        """As `rows`, or their upper halves where that is how all of them are stored; read only in one piece.

        Raises StoreError as `rows` does.
        """
        parts, reached = [], rows.start
        for piece in self._by_rows:
            if len(self._by_rows) == 1 and piece.rows.start <= rows.start < rows.stop <= piece.rows.stop:
                return piece.arrays[SNAPSHOT][rows.start - piece.rows.start : rows.stop - piece.rows.start]
            start, stop = max(rows.start, piece.rows.start), min(rows.stop, piece.rows.stop)
            if start < stop:
                if start != reached:
                    raise self._uncovered()
                parts.append(piece.arrays[SNAPSHOT][start - piece.rows.start : stop - piece.rows.start])
                reached = stop
        if reached != rows.stop:
            raise self._uncovered()
        if len(parts) == 1:
            return parts[0]
        if any(part.dtype != np.uint16 for part in parts):
            parts = [unpack(part) if part.dtype == np.uint16 else part for part in parts]
        return np.concatenate(parts)

    def check_rows(self, vocab: int) -> None:
        """Raise StoreError where the pieces of a matrix do not hold each of its rows once."""
        reached = 0
        for rows in (piece.rows for piece in self._by_rows):
            if rows.start < rows.stop:
                if rows.start != reached:
                    raise self._uncovered()
                reached = rows.stop
        if self.entry.has_snapshot and reached != vocab:
            raise self._uncovered()

    def _uncovered(self) -> StoreError:
        ranges = ", ".join(f"{piece.rows.start}:{piece.rows.stop}" for piece in self._pieces)
        return StoreError(
            f"step {self.entry.step}: the ranks' pieces hold the rows {ranges}; needed each row of the matrix once. "
            "Give the ranks ranges that meet; to go on with the store, resume it from a step before this one."
        )
