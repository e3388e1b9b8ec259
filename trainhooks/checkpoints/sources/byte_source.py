"""Bytes by range: what every format here is read from, a local file or one at a hub."""

from __future__ import annotations

import contextlib
import io
import json
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from trainhooks.checkpoints.base import CheckpointError
from trainhooks.core.file_maps import remember

AHEAD_AT_ONCE = 1 << 20  # a system takes no longer request than its own read-ahead: 128 kB to 8 MB
SMALL_BYTES = 1 << 16  # below this a copy is cheaper than a mapping
MOST_SIZE = 1 << 63  # torch counts elements in int64
HEADER_LIMIT = 100_000_000  # bytes of header or pickle; safetensors' own limit
TAIL_BYTES = 1 << 14
DIRECTORY_LIMIT = 1 << 24  # bytes of a zip's directory: some 200,000 entries
MOST_CONTAINERS = 1_500_000  # arrays and objects of a JSON text: each byte of "[[],[]" would take 30 in memory
MOST_VALUES = 8_000_000  # of a JSON text, by its commas: each takes up to 60 bytes

WritableBytes = bytearray | memoryview


class ByteSource(Protocol):
    """A file of known size (bytes) that gives any range of itself; `name` for messages."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    @property
    def size(self) -> int:
        """Bytes in all."""
        ...

    def read(self, start: int, stop: int) -> WritableBytes:
        """Bytes [start, stop), exactly that many and writable without changing the file. Raises CheckpointError."""
        ...


@dataclass(frozen=True)
class LocalFile:
    """A file on this machine. A large range is a private mapping: nothing is copied before it is touched."""

    path: Path
    size: int

    @classmethod
    def open(cls, path: Path) -> LocalFile:
        """The regular file at `path`. Raises CheckpointError for what is none (a folder, a pipe, a link in a loop)."""
        try:
            size = path.stat().st_size
            regular = path.is_file()
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
        if not regular:
            raise CheckpointError(f"{path} is no regular file; a checkpoint's files must be.")
        return cls(path, size)

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    def read(self, start: int, stop: int) -> WritableBytes:
        """Bytes [start, stop). Raises CheckpointError where the file does not hold them."""
        check_range(self, start, stop)
        try:
            with self.path.open("rb", buffering=0) as file:
                if stop > os.fstat(file.fileno()).st_size:
                    raise CheckpointError(f"{self.name} has become shorter than {stop} bytes while it was read.")
                if stop - start < SMALL_BYTES:
                    return bytearray(os.pread(file.fileno(), stop - start, start))
                page = start - start % mmap.ALLOCATIONGRANULARITY
                mapped = mmap.mmap(file.fileno(), stop - page, access=mmap.ACCESS_COPY, offset=page)
        except OSError as error:
            raise CheckpointError(f"{self.name} cannot be read: {error.strerror}.") from error
        remember(mapped)
        return memoryview(mapped)[start - page :]

    def expect(self, start: int, stop: int) -> None:
        """Have the system begin to read bytes [start, stop), and go on; nothing where it cannot be asked (macOS)."""
        if not hasattr(os, "posix_fadvise"):
            return
        with contextlib.suppress(OSError), self.path.open("rb", buffering=0) as file:
            for at in range(start, stop, AHEAD_AT_ONCE):
                os.posix_fadvise(file.fileno(), at, min(AHEAD_AT_ONCE, stop - at), os.POSIX_FADV_WILLNEED)


@dataclass(frozen=True)
class Slice:
    """A run of bytes inside another source, as a source of its own. Raises CheckpointError where it reaches outside."""

    source: ByteSource
    offset: int
    size: int

    def __post_init__(self) -> None:
        check_range(self.source, self.offset, self.offset + self.size)

    @property
    def name(self) -> str:
        """The file and the place in it."""
        return f"{self.source.name}[{self.offset}:{self.offset + self.size}]"

    def read(self, start: int, stop: int) -> WritableBytes:
        """Bytes [start, stop) of the slice. Raises CheckpointError."""
        check_range(self, start, stop)
        return self.source.read(self.offset + start, self.offset + stop)


def check_range(source: ByteSource, start: int, stop: int) -> None:
    """Raise CheckpointError unless 0 <= start <= stop <= size."""
    if not 0 <= start <= stop <= source.size:
        raise CheckpointError(
            f"{source.name} has {source.size} bytes; bytes {start} to {stop} were asked for. "
            "It is truncated or its header is wrong: fetch it again."
        )


def load_json(text: bytes | bytearray, *, most: tuple[int, int] | None = None, **options: Any) -> Any:
    """`json.loads` of a text that may be made to harm. Raises ValueError where it is no JSON, nested too deep, or of
    more than 1.5 million arrays and objects or 8 million values; or of more than `most` of these two."""
    containers, values = most or (MOST_CONTAINERS, MOST_VALUES)
    if text.count(b"[") + text.count(b"{") > containers:
        raise ValueError(f"it has more than {containers} arrays and objects")
    if text.count(b",") > values:
        raise ValueError(f"it has more than {values} values")
    try:
        return json.loads(text, **options)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def read_json(source: ByteSource) -> dict[str, Any]:
    """The object that a small JSON file holds. Raises CheckpointError where it is none, or has over 100 MB."""
    if source.size > HEADER_LIMIT:
        raise CheckpointError(f"{source.name} has {source.size} bytes; {HEADER_LIMIT} are allowed.")
    try:
        fields = load_json(bytes(source.read(0, source.size)))
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{source.name} is no JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise CheckpointError(f"{source.name} holds a JSON {type(fields).__name__}; it must be an object.")
    return fields


class SourceFile(io.RawIOBase):
    """A source as the seekable file that `zipfile` wants. One read of at most 16 KiB serves all reads near its end,
    where a zip keeps its directory; no single read may exceed `limit`, 16 MiB until it
    is raised (CheckpointError)."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self.limit = DIRECTORY_LIMIT
        self._position = 0
        self._tail_start = max(0, source.size - TAIL_BYTES)
        self._tail = bytes(source.read(self._tail_start, source.size))

    def seekable(self) -> bool:
        """Yes."""
        return True

    def readable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Bytes from the start."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move; as in `io`."""
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._source.size}[whence]
        if origin + offset < 0:
            raise OSError(f"position {origin + offset} lies before the start of {self._source.name}.")
        self._position = origin + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """Up to `size` bytes from here; all that is left where it is negative or None."""
        start = self._position
        left = max(0, self._source.size - start)
        length = left if size is None or size < 0 else min(size, left)
        if length > self.limit:
            raise CheckpointError(f"{self._source.name} wants {length} bytes read at once; {self.limit} are the limit.")
        self._position = start + length
        if start >= self._tail_start:
            return self._tail[start - self._tail_start :][:length]
        return bytes(self._source.read(start, start + length))
