"""Pre-tokenised corpora: `.npy` arrays and headerless `.bin` streams, cut into spans and counted from disk.

A span is read in blocks into one small buffer, so memory does not grow with the file, and a block that fits the
cache is counted faster than the whole memory map at once (benchmarks/count.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np

from trainhooks.corpora.base import MAX_PROBLEMS, CorpusChunk, LabelRule, Settings, Tally

PIECE_BYTES = 1 << 26
_BLOCK = 1 << 18  # ids a pass: what bincount widens to int64 (2 MB) stays in the cache
_SAMPLES, _SAMPLE_BYTES = 16, 4096
_WIDTH_BYTES, _WIDTH_PAIRS = 1 << 16, 64  # what a `.bin` of wider ids is told by, and the least it takes

Firsts = Callable[[int, int], "slice | np.ndarray"]


@dataclass(frozen=True)
class Span:
    """Tokens `start` to `stop` (in tokens) of the stream that begins at byte `offset` of `path`."""

    path: str
    dtype: str
    offset: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Bytes of the span."""
        return (self.stop - self.start) * np.dtype(self.dtype).itemsize

    def key(self) -> str:
        """File, its modification time and the span: another file there, or the same one altered, differs."""
        path = Path(self.path)
        return f"{path.resolve()}@{path.stat().st_mtime_ns}:{self.dtype}:{self.start}-{self.stop}"

    def fingerprint(self) -> str:
        """Checksum of the span's place, type and of evenly spaced samples of its bytes (all, up to 64 kB)."""
        digest = hashlib.blake2b(f"{self.dtype} {self.start} {self.stop}".encode(), digest_size=16)
        first = self.offset + self.start * np.dtype(self.dtype).itemsize
        with open(self.path, "rb", buffering=0) as file:
            for place in np.linspace(0, max(self.size - _SAMPLE_BYTES, 0), _SAMPLES).astype(np.int64).tolist():
                file.seek(first + place)
                digest.update(file.read(min(_SAMPLE_BYTES, self.size - place)))
        return digest.hexdigest()


@dataclass(frozen=True)
class ArrayPiece:
    """A span of one array. `row` is the length of the array's last axis, its sequences; None for a bare stream."""

    span: Span
    row: int | None
    key: str
    fingerprint: str

    @property
    def size(self) -> int:
        """Bytes of the span."""
        return self.span.size

    def tally(self, settings: Settings) -> Tally:
        """Count the span; documents stay unknown, for an array has none.

        Raises ValueError with file and position for ids outside the vocabulary (`skip_bad` leaves those ids out
        and counts them), and where the file has become shorter.
        """
        period = settings.rule.window or (self.row if settings.rule.skip_first else None)
        return count_span(self.span, settings, firsts=None if period is None else every(period))


def every(period: int) -> Firsts:
    """First positions of sequences of one length, relative to the block they are asked for."""
    return lambda start, stop: slice(-start % period, stop - start, period)


def npy_pieces(path: Path, settings: Settings) -> list[CorpusChunk]:
    """Pieces of an `.npy` array of any integer dtype and shape, read in C order; the last axis is a sequence.

    A `window` is cut over the array's ids as one stream; `skip_first` leaves out the first of each row (of a
    one-dimensional array: its very first id). Raises ValueError for a damaged or truncated file, for another
    dtype, and for Fortran order where the rule needs positions.
    """
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, OSError, EOFError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path} is no .npy file that can be read: {error}. Save it again.") from error
    if array.dtype.kind not in "iu":
        raise ValueError(f"{path} has dtype {array.dtype}; needed token ids, which are integers.")
    positional = settings.rule.window is not None or settings.rule.skip_first
    if positional and not array.flags.c_contiguous:
        raise ValueError(
            f"{path} is in Fortran order, so its sequences do not lie together; save numpy.ascontiguousarray(...)."
        )
    row = array.shape[-1] if array.ndim else 1
    return spans_of(path, dtype=array.dtype.str, offset=int(array.offset), tokens=array.size, row=row)


def bin_pieces(path: Path, *, dtype: str = "uint16", vocab_size: int = 1) -> list[CorpusChunk]:
    """Pieces of a headerless `.bin` of token ids, as nanoGPT writes it: one stream, `uint16` unless said.

    `skip_first` leaves out the file's first id only, for the stream does not know its documents. Raises
    ValueError where the bytes are no whole number of ids, where the dtype is no integer, and where the file is of
    another one and would give wrong ids silently: the dtype cannot hold the ids of `vocab_size`, or wider ids show in
    the file's first 64 kB (every second id is 0, and a quarter of the others or more are not).
    """
    kind = _integer(dtype, path)
    if np.iinfo(kind).max < vocab_size - 1:
        raise ValueError(
            f"{path} is to be read as {kind.name}, which ends at {np.iinfo(kind).max}; the vocabulary has ids up to "
            f"{vocab_size - 1}. Name the dtype that the file was written with, such as uint32."
        )
    size = path.stat().st_size
    if size % kind.itemsize:
        raise ValueError(
            f"{path} has {size} bytes, no whole number of {kind.name} ids ({kind.itemsize} bytes each): is it cut "
            "short, or of another dtype? Name the dtype, or make the file again."
        )
    if _holds_wider(path, kind):
        raise ValueError(
            f"{path} is to be read as {kind.name}, and every second id of its beginning is 0, as if its ids were "
            "wider. Name the dtype that the file was written with, such as uint32 (bin_dtype; on the command line "
            "--dtype uint32)."
        )
    tokens = size // kind.itemsize
    return spans_of(path, dtype=kind.str, offset=0, tokens=tokens, row=max(tokens, 1))


def _holds_wider(path: Path, kind: np.dtype) -> bool:
    """Whether ids of twice the width or more begin the file: the empty half of each reads as 0, in either byte order.

    Padding is no such sign, for it is 0 everywhere: a quarter of the other halves must hold something (of ids four
    times as wide, half of those are empty too).
    """
    if kind.itemsize == 8:
        return False
    with path.open("rb") as file:
        data = file.read(_WIDTH_BYTES)
    pairs = np.frombuffer(data[: len(data) - len(data) % (2 * kind.itemsize)], dtype=kind).reshape(-1, 2)
    used = np.count_nonzero(pairs, axis=0)
    return len(pairs) >= _WIDTH_PAIRS and used.min() == 0 and 4 * used.max() > len(pairs)


def _integer(dtype: str, path: Path) -> np.dtype:
    try:
        kind = np.dtype(dtype)
    except TypeError as error:
        raise ValueError(f"dtype {dtype} was given for {path}; needed one that numpy knows, such as uint16.") from error
    if kind.kind not in "iu":
        raise ValueError(f"dtype {dtype} was given for {path}; needed an integer dtype, such as uint16 or int32.")
    return kind


def spans_of(path: Path, *, dtype: str, offset: int, tokens: int, row: int) -> list[CorpusChunk]:
    """One piece for every 64 MB of an array; none for an empty one. Rules count positions from the file's start."""
    return [ArrayPiece(span, row, span.key(), span.fingerprint()) for span in cut(str(path), dtype, offset, tokens)]


def cut(path: str, dtype: str, offset: int, tokens: int) -> Iterator[Span]:
    """The spans of a stream of `tokens` ids."""
    step = PIECE_BYTES // np.dtype(dtype).itemsize
    for start in range(0, tokens, step):
        yield Span(path, dtype, offset, start, min(start + step, tokens))


def count_span(span: Span, settings: Settings, *, firsts: Firsts | None) -> Tally:
    """Count a span; `firsts` gives the positions within a block (start, stop) that are never labels.

    Raises ValueError as `ArrayPiece.tally` does.
    """
    tally = Tally(np.zeros(settings.vocab_size, dtype=np.int64), tokens=span.stop - span.start)
    for start, block in _blocks(span, settings.vocab_size):
        first = None if firsts is None else firsts(start, start + block.size)
        if _in_vocabulary(block, settings.vocab_size):
            ids = block.astype(np.int64, copy=False)
            tally.counts += np.bincount(ids, minlength=settings.vocab_size)
            if first is not None:
                tally.counts -= np.bincount(ids[first], minlength=settings.vocab_size)
        else:
            _count_mixed(tally, block, first, settings, path=span.path, start=start)
    tally.counts[inside(settings.rule, settings.vocab_size)] = 0
    return tally


def inside(rule: LabelRule, vocab_size: int) -> list[int]:
    """The ids that a rule leaves out and that are in the vocabulary."""
    return [token for token in rule.leave_out if 0 <= token < vocab_size]


def _blocks(span: Span, vocab_size: int) -> Iterator[tuple[int, np.ndarray]]:
    """Start and ids of each block, in one buffer that is filled again and again."""
    dtype = np.dtype(span.dtype)
    buffer = np.empty(min(max(_BLOCK, 4 * vocab_size), span.stop - span.start), dtype=dtype)
    with open(span.path, "rb", buffering=0) as file:
        file.seek(span.offset + span.start * dtype.itemsize)
        for start in range(span.start, span.stop, buffer.size):
            block = buffer[: min(buffer.size, span.stop - start)]
            _fill(file, block, span, start)
            yield start, block


def _fill(file: FileIO, block: np.ndarray, span: Span, start: int) -> None:
    view, done = memoryview(block.view(np.uint8).data), 0
    while done < len(view):
        got = file.readinto(view[done:])
        if not got:
            raise ValueError(
                f"{span.path} ends at token {start + done // block.itemsize}; needed {span.stop}: it has become "
                "shorter since counting began. Make it again and count anew."
            )
        done += got


def _in_vocabulary(block: np.ndarray, vocab_size: int) -> bool:
    if block.dtype.kind == "i" and int(block.min()) < 0:
        return False
    return int(block.max()) < vocab_size


def _count_mixed(
    tally: Tally, block: np.ndarray, first: slice | np.ndarray | None, settings: Settings, *, path: str, start: int
) -> None:
    """Count a block that holds ids outside the vocabulary: ids the rule leaves out are fine, others are bad."""
    vocab_size = settings.vocab_size
    good = (block >= 0) & (block < vocab_size)
    known = good.copy()
    for token in settings.rule.leave_out:  # not isin: it compares uint64 with negative ids as floats
        known |= block == token
    bad = np.flatnonzero(~known)
    if bad.size:
        found = f"{path}, position {start + int(bad[0])}: token id {block[bad[0]]} is outside 0 ... {vocab_size - 1}"
        if not settings.skip_bad:
            raise ValueError(
                f"{found}. Pass the vocabulary size of the tokenizer that made the ids, name the ids to leave out, or "
                "skip bad ones."
            )
        tally.skipped += int(bad.size)
        tally.problems = [*tally.problems, found][:MAX_PROBLEMS]
    if first is not None:
        good[first] = False
    tally.counts += np.bincount(block[good].astype(np.int64), minlength=vocab_size)
