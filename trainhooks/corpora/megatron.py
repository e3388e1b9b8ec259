"""Megatron's `.bin/.idx` corpora, Pythia's own format: ids in one file, their sequences and documents in the other.

Layout of an `.idx`, little-endian (Megatron-LM and GPT-NeoX, `indexed_dataset.py`): b"MMIDIDX\\0\\0", version uint64
(1), dtype code uint8, number of sequences uint64, length of the document index uint64, sizes int32 (in tokens),
pointers int64 (in bytes), document index int64 (numbers of first sequences, and at last the number of sequences);
Megatron-Core may append one mode byte a sequence.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainhooks.corpora.arrays import Span, count_span, cut, every
from trainhooks.corpora.base import CorpusChunk, Settings, Tally

_MAGIC = b"MMIDIDX\x00\x00"
_LEGACY = b"TNTIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_FLOATS = (6, 7)  # float32 and float64, in an order on which the two code bases differ
_CHUNK = 1 << 20  # index entries a pass


@dataclass(frozen=True)
class Index:
    """What an `.idx` says: dtype of the ids, sequences, length of the document index, tokens in all."""

    path: str
    dtype: str
    sequences: int
    entries: int
    tokens: int = 0

    @property
    def sizes_at(self) -> int:
        """Byte at which the sequences' sizes begin."""
        return _HEADER.size

    @property
    def pointers_at(self) -> int:
        """Byte at which the sequences' pointers begin."""
        return self.sizes_at + 4 * self.sequences

    @property
    def documents_at(self) -> int:
        """Byte at which the document index begins."""
        return self.pointers_at + 8 * self.sequences

    @property
    def documents(self) -> int:
        """Number of documents."""
        return self.entries - 1

    def first_positions(self, start: int, stop: int) -> np.ndarray:
        """Where in the stream's span [start, stop) documents begin, relative to `start`; empty documents have none."""
        if not self.documents:
            return np.empty(0, dtype=np.int64)
        pointers = np.memmap(self.path, "<i8", "r", self.pointers_at, (self.sequences,))
        starts = np.memmap(self.path, "<i8", "r", self.documents_at, (self.entries,))
        itemsize = np.dtype(self.dtype).itemsize

        def position(document: int) -> int:
            sequence = int(starts[document])
            return self.tokens if sequence == self.sequences else int(pointers[sequence]) // itemsize

        low = bisect_left(range(self.documents), start, key=position)
        high = bisect_left(range(self.documents), stop, lo=low, key=position)
        sequences = np.asarray(starts[low:high])
        return np.unique(np.asarray(pointers[sequences]) // itemsize) - start


@dataclass(frozen=True)
class MegatronPiece:
    """A span of a Megatron stream; `documents` is credited to the first span of the file, 0 to the others."""

    span: Span
    index: Index
    documents: int
    key: str
    fingerprint: str

    @property
    def size(self) -> int:
        """Bytes of the span."""
        return self.span.size

    def tally(self, settings: Settings) -> Tally:
        """Count the span. Raises ValueError with file and position for ids outside the vocabulary."""
        firsts = None
        if settings.rule.window is not None:
            firsts = every(settings.rule.window)
        elif settings.rule.skip_first:
            firsts = self.index.first_positions
        tally = count_span(self.span, settings, firsts=firsts)
        tally.documents = self.documents
        return tally


def megatron_pieces(path: Path) -> list[CorpusChunk]:
    """Pieces of a `.bin/.idx` pair, named by either file.

    A `window` is cut over the whole `.bin` as one stream in file order, as Pythia's pre-shuffled files are
    trained on (each of their sequences is one window of 2049); `skip_first` leaves out each document's first
    token. The shuffling and the packing of a training run are not in the files, and are not imitated.

    Raises ValueError, naming the file, for an `.idx` of another format or version, a dtype that holds no ids, an
    index that does not fit its own length, a truncated `.bin`, and a `.bin` that the index was not made for.
    """
    ids, index_path = path.with_suffix(".bin"), path.with_suffix(".idx")
    for needed in (ids, index_path):
        if not needed.is_file():
            raise ValueError(f"{needed} is missing: a Megatron corpus is a .bin and an .idx of one name.")
    index = read_index(index_path)
    _check_ids(ids, index)
    spans = list(cut(str(ids), index.dtype, 0, index.tokens))
    stamp = index_path.stat().st_mtime_ns
    return [
        MegatronPiece(
            span,
            index,
            0 if number else index.documents,
            f"{span.key()}:{stamp}",
            f"{span.fingerprint()}-{index.documents}",
        )
        for number, span in enumerate(spans)
    ]


def read_index(path: Path) -> Index:
    """The header of an `.idx`, and its tables checked in one pass of bounded memory: see `megatron_pieces`."""
    with path.open("rb") as file:
        head = file.read(_HEADER.size)
    index = _parse_header(path, head)
    size = path.stat().st_size
    needed = index.documents_at + 8 * index.entries
    if size not in (needed, needed + index.sequences):
        raise ValueError(
            f"{path} has {size} bytes; its header ({index.sequences} sequences, document index of {index.entries}) "
            f"needs {needed}: it is {'cut short' if size < needed else 'damaged'}. Copy or make it again."
        )
    _check_documents(index)
    return Index(index.path, index.dtype, index.sequences, index.entries, _count_tokens(index))


def _parse_header(path: Path, head: bytes) -> Index:
    if head.startswith(_LEGACY):
        raise ValueError(
            f"{path} is of Megatron's legacy format (TNTIDX); needed MMIDIDX: convert it with the code that wrote it "
            "(dataset implementation mmap)."
        )
    if not head.startswith(_MAGIC) or len(head) < _HEADER.size:
        raise ValueError(f"{path} begins with {head[:9]!r}; needed {_MAGIC!r} and a header: it is no Megatron index.")
    _, version, code, sequences, entries = _HEADER.unpack(head)
    if version != 1:
        raise ValueError(f"{path} has version {version}; needed 1, the only one that is known.")
    if code not in _DTYPES:
        what = "floating-point numbers, no token ids" if code in _FLOATS else "an unknown type"
        raise ValueError(f"{path} has dtype code {code}, {what}; needed one of {sorted(_DTYPES)}.")
    if entries < 1:
        raise ValueError(f"{path} has an empty document index; needed one entry more than documents: make it again.")
    return Index(str(path), _DTYPES[code], sequences, entries)


def _chunks(path: str, offset: int, dtype: str, entries: int) -> Iterator[tuple[int, np.ndarray]]:
    """A table of the index in chunks: first entry and values."""
    with open(path, "rb") as file:
        file.seek(offset)
        for start in range(0, entries, _CHUNK):
            length = min(_CHUNK, entries - start)
            yield start, np.frombuffer(file.read(length * np.dtype(dtype).itemsize), dtype=dtype)


def _count_tokens(index: Index) -> int:
    """The sum of the sizes; every pointer must be the sum of the sizes before it, in bytes."""
    itemsize, total = np.dtype(index.dtype).itemsize, 0
    sizes = _chunks(index.path, index.sizes_at, "<i4", index.sequences)
    pointers = _chunks(index.path, index.pointers_at, "<i8", index.sequences)
    for (start, size), (_, pointer) in zip(sizes, pointers, strict=True):
        if size.min() < 0:
            raise ValueError(f"{index.path}: sequence {start + int(size.argmin())} has a negative size: it is damaged.")
        ends = total + np.cumsum(size, dtype=np.int64)
        wrong = np.flatnonzero(pointer != (ends - size) * itemsize)
        if wrong.size:
            raise ValueError(
                f"{index.path}: sequence {start + int(wrong[0])} is said to begin at byte {pointer[wrong[0]]}; the "
                f"sizes before it sum to {(ends - size)[wrong[0]] * itemsize}. The index is damaged, or its sequences "
                "do not follow one another: make it again."
            )
        total = int(ends[-1])
    return total


def _check_documents(index: Index) -> None:
    """The document index must rise from 0 to the number of sequences."""
    before = 0
    for start, entries in _chunks(index.path, index.documents_at, "<i8", index.entries):
        wrong = np.flatnonzero(np.diff(entries, prepend=before) < 0)
        if (start == 0 and entries[0] != 0) or wrong.size:
            place = start + (int(wrong[0]) if wrong.size else 0)
            raise ValueError(f"{index.path}: entry {place} of the document index is out of order: it is damaged.")
        before = int(entries[-1])
    if before != index.sequences:
        raise ValueError(
            f"{index.path}: the document index ends at sequence {before}; needed {index.sequences}: it is damaged."
        )


def _check_ids(ids: Path, index: Index) -> None:
    have, needed = os.path.getsize(ids), index.tokens * np.dtype(index.dtype).itemsize
    if have == needed:
        return
    what = "cut short, or the index belongs to another file" if have < needed else "not the file the index was made for"
    raise ValueError(
        f"{ids} has {have} bytes; {index.path} says {index.tokens} ids of {np.dtype(index.dtype).name}, {needed} "
        f"bytes: it is {what}. Copy both again, from one source."
    )
