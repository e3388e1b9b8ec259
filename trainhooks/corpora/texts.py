"""Text files as pieces: plain text, JSON lines, and both compressed with gzip or Zstandard.

A plain file is one document, a JSON line is one. What is not compressed is cut into spans that several workers
share; a compressed file is one piece, read as a stream. Windows run through a whole file, so with them each file is
one piece; so is a plain file where bad documents are skipped, since it is skipped whole, or where its tokenizer does
not allow cuts (see `splitting`).
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from codecs import BOM_UTF8
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainhooks.corpora.base import CorpusChunk, Settings, Tally
from trainhooks.corpora.documents import DocumentCounter, load_tokenizer
from trainhooks.corpora.fingerprints import checksum, place
from trainhooks.corpora.splitting import BadDocument, chunks, next_cut

LINES = frozenset((".jsonl", ".ndjson"))
PLAIN = frozenset(
    (".txt", ".text", ".md", ".rst", ".tex", ".py", ".c", ".h", ".cpp", ".rs", ".go", ".java", ".js", ".ts", ".html")
)
COMPRESSED = frozenset((".gz", ".zst"))
_SPAN = 32 << 20  # bytes a piece: some 10 s of one core
_BLOCK = 1 << 16  # bytes read at once
_ZSTD_BLOCK = 1 << 13  # compressed bytes: they may grow some thousand times
LONGEST_LINE = 40 << 20  # bytes of one JSON line: as empty objects they take 24 times as much


class _Broken(Exception):
    """The rest of a file cannot be read."""


def is_text(path: str | os.PathLike[str]) -> bool:
    """Whether `text_pieces` reads files with this name."""
    return _suffix(Path(path)) in PLAIN | LINES


def text_pieces(path: str | os.PathLike[str], settings: Settings) -> list[CorpusChunk]:
    """A text file as pieces, in order; none for an empty file.

    Raises ValueError for a name that is not known as text, and for a tokenizer that cannot be used.
    """
    path = Path(path)
    if not is_text(path):
        known = ", ".join(sorted(PLAIN | LINES))
        raise ValueError(f"{path} is not known as text: needed one of {known}, with .gz or .zst behind it or not.")
    _, may_cut = load_tokenizer(settings.tokenizer)
    status = path.stat()
    kind = LinesPiece if _suffix(path) in LINES else PlainPiece
    shared = settings.rule.window is None and path.suffix.lower() not in COMPRESSED
    if kind is PlainPiece:
        shared = shared and may_cut and not settings.skip_bad
    step = _SPAN if shared else max(status.st_size, 1)
    return [
        kind(str(path), start, min(start + step, status.st_size), status.st_size)
        for start in range(0, status.st_size, step)
    ]


@dataclass
class _Span:
    """Bytes `start` to `end` of a file of `whole` bytes (as it lies on the disk, compressed or not)."""

    path: str
    start: int
    end: int
    whole: int
    key: str = field(init=False)
    size: int = field(init=False)
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        self.key = f"{place(self.path)}:{self.start}-{self.end}"
        self.size = self.end - self.start
        self.fingerprint = checksum(self.path, self.start, self.end)


@dataclass
class PlainPiece(_Span):
    """A span of a document, from the first cut at `start` or later to the first one at `end` or later."""

    def tally(self, settings: Settings) -> Tally:
        """Counts the span. Raises ValueError naming file and byte for broken UTF-8 or a stream cut short."""
        counter = DocumentCounter(settings, lambda _: self.path)
        begin, end = self._cut(self.start), self._cut(self.end)
        if begin == end:
            return counter.finish()
        compressed = Path(self.path).suffix.lower() in COMPRESSED
        blocks = _blocks(self.path, begin, None if compressed else end)
        document = chunks(_mended(blocks), may_cut=counter.may_cut, at=begin)
        counter.add_parts(document, 0, continues=begin > 0)
        return counter.finish()

    def _cut(self, at: int) -> int:
        if at in (0, self.whole):
            return at
        found = next_cut(_blocks(self.path, at - 1), at)
        return self.whole if found is None else found


@dataclass
class LinesPiece(_Span):
    """The JSON lines that begin in a span; white lines and a byte order mark are passed over."""

    def tally(self, settings: Settings) -> Tally:
        """Counts the lines. Raises ValueError naming file and line for one that has no text to count."""
        counter = DocumentCounter(settings, self._locate)
        number = -1
        try:
            for number, offset, line in self._lines():
                if offset >= self.end and Path(self.path).suffix.lower() not in COMPRESSED:
                    break
                if number == 0 and self.start > 0:
                    continue  # the end of the line before
                start = BOM_UTF8 if offset == 0 else b""
                try:
                    text = _text(line and line.removeprefix(start), settings.text_field)
                except BadDocument as error:
                    counter.bad(number, error)
                    continue
                if text is not None:
                    counter.add_text(text, number)
        except _Broken as error:
            counter.bad(number + 1, error)
        return counter.finish()

    def _lines(self) -> Iterator[tuple[int, int, bytes | None]]:
        """Number, offset and bytes of each line from `start - 1` on; None for a line that is too long."""
        held, size, number = [], 0, 0
        offset = at = max(self.start - 1, 0)
        for block in _blocks(self.path, at):
            *ended, rest = block.split(b"\n")
            for line in ended:
                held.append(line)
                size += len(line)
                yield number, offset, b"".join(held) if size <= LONGEST_LINE else None
                number, offset = number + 1, offset + size + 1
                held, size = [], 0
            size += len(rest)
            held = [*held, rest] if size <= LONGEST_LINE else []
        if size:
            yield number, offset, b"".join(held) if size <= LONGEST_LINE else None

    def _locate(self, number: int) -> str:
        before, left = 1, max(self.start - 1, 0)
        if left:
            for block in _blocks(self.path, 0, left):
                before += block.count(b"\n")
        return f"{self.path}, line {before + number}"


def _text(line: bytes | None, name: str) -> str | None:
    """The text of a JSON line, None for a white one."""
    if line is None:
        raise BadDocument(f"the line has more than {LONGEST_LINE >> 20} MiB: split the document")
    if not line.strip():
        return None
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise BadDocument(f"byte {error.start} of the line is not UTF-8 ({error.reason})") from error
    except (ValueError, RecursionError) as error:
        raise BadDocument(f"not JSON ({error}): needed one object a line") from error
    if not isinstance(record, dict) or name not in record:
        fields = f"fields {', '.join(map(repr, record))}" if isinstance(record, dict) else f"a {type(record).__name__}"
        raise BadDocument(f"got {fields}; needed an object with the field {name!r}. Name the field that holds text")
    text = record[name]
    if not isinstance(text, str):
        raise BadDocument(f"the field {name!r} holds {type(text).__name__}; needed text")
    return text


def _suffix(path: Path) -> str:
    """What the file holds, by its name, compressed or not."""
    name = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    return name.suffix.lower()


def _blocks(path: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
    """The file's bytes, decompressed; `start` and `end` are for files that are not. Raises _Broken."""
    suffix = Path(path).suffix.lower()
    with open(path, "rb") as file:
        if suffix == ".gz":
            yield from _gunzipped(file)
        elif suffix == ".zst":
            yield from _unzstd(file)
        else:
            file.seek(start)
            left = None if end is None else end - start
            while block := file.read(_BLOCK if left is None else min(_BLOCK, left)):
                left = None if left is None else left - len(block)
                yield block


def _mended(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """A plain document ends badly where its file does."""
    try:
        yield from blocks
    except _Broken as error:
        raise BadDocument(str(error)) from error


def _gunzipped(file: Any) -> Iterator[bytes]:
    with gzip.open(file) as stream:
        read = 0
        while True:
            try:
                block = stream.read(_BLOCK)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise _Broken(
                    f"the gzip stream is cut short or damaged after {read} bytes of text ({error})"
                ) from error
            if not block:
                return
            read += len(block)
            yield block


def _unzstd(file: Any) -> Iterator[bytes]:
    """Decompressed frame by frame: the library's stream reader takes a frame cut short for a whole one."""
    try:
        import zstandard
    except ImportError as error:
        raise ImportError("reading .zst needs zstandard: pip install 'trainhooks[corpora]'.") from error
    frame, read = None, 0
    while block := file.read(_ZSTD_BLOCK):
        while block:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            try:
                found = frame.decompress(block)
            except zstandard.ZstdError as error:
                raise _Broken(f"the zstd stream is damaged after {read} bytes of text ({error})") from error
            block, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
            for start in range(0, len(found), _BLOCK):
                yield found[start : start + _BLOCK]
            read += len(found)
    if frame is not None:
        raise _Broken(f"the zstd stream is cut short after {read} bytes of text")
