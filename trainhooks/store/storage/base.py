"""Where a store lies: whole files by key, so that a folder and an object store need one write path.

A key is a relative path with `/`. A file is there whole or not at all, whatever stops the process. No key leads out of
its place, by its name or by a link, and only plain files are opened.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol, runtime_checkable

from trainhooks.store.errors import StoreError

TEMPORARY = ".partial"
JOURNAL = ".journal"
LOCK = ".lock"
DURABILITIES = ("process", "power")
ALONE_SECONDS = 30.0
Data = bytes | bytearray | memoryview


@runtime_checkable
class Output(Protocol):
    """What a streamed write gets: bytes go in, in order."""

    def write(self, data: Data, /) -> int:
        """Take bytes; returns how many."""


class ChecksumWriter:
    """Passes bytes on to a file, and knows their number and their CRC-32 (zlib's)."""

    def __init__(self, file: Output) -> None:
        self._file = file
        self.size = 0
        self.crc32 = 0

    def write(self, data: Data, /) -> int:
        """Write all of `data`; returns its bytes."""
        view = memoryview(data).cast("B")
        rest = view
        while len(rest):
            rest = rest[self._file.write(rest) :]
        self.crc32 = zlib.crc32(view, self.crc32)
        self.size += len(view)
        return len(view)


class Storage(ABC):
    """Files by key. Reads raise FileNotFoundError, and every method OSError, where the medium refuses.

    Raises StoreError for a key that is none, and for what is no plain file.
    """

    @abstractmethod
    def create(self) -> None:
        """Make the place itself where it is not there yet."""

    def put(self, key: str, data: Data) -> ChecksumWriter:
        """Write a file at once; it is as durable as the storage promises when this returns. Says size and checksum."""

        def write(file: ChecksumWriter) -> str:
            file.write(data)
            return key

        return self.put_streamed(write)

    @abstractmethod
    def put_streamed(self, write: Callable[[ChecksumWriter], str]) -> ChecksumWriter:
        """Let `write` fill a new file; it has the key that `write` returns from then on, and not before."""

    def settle(self) -> None:  # noqa: B027
        """Wait until what was put lasts through a power cut: all but the journal and the lock, which may be lost."""

    @abstractmethod
    def read(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """A file's bytes, or a range of them."""

    @abstractmethod
    def read_end(self, key: str, count: int) -> bytes:
        """A file's last `count` bytes, all of it where it has fewer."""

    @abstractmethod
    def mmap(self, key: str) -> memoryview:
        """A whole file, mapped where the medium can; it stays readable when the file is deleted or replaced."""

    def expect_maps(self, count: int) -> None:  # noqa: B027
        """So many files will be mapped and held together: make room for it where the system bounds that."""

    @abstractmethod
    def size(self, prefix: str = "") -> int:
        """Bytes of all files below the folder `prefix`; those that go meanwhile do not count."""

    def room(self) -> int | None:
        """Bytes that are free; None where the medium knows no end."""
        return None

    @abstractmethod
    def link(self, key: str, other: str) -> bool:
        """Give a file a second key, without its bytes passing through here; False where the medium cannot."""

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether there is a file (or a folder of files) at `key`."""

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[str]:
        """Keys of all files below the folder `prefix`, in no order; none where there is no such folder."""

    @abstractmethod
    def list_dir(self, prefix: str = "") -> Iterator[str]:
        """Names of the files and folders directly in the folder `prefix`."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Delete a file, or a folder with all that is in it; nothing where there is none."""

    def tidy(self, folder: str) -> None:  # noqa: B027
        """Delete a folder where it is empty; nothing on a medium that has no folders."""

    def alone(self) -> AbstractContextManager[None]:
        """No other process is in here for the same place, where the medium can promise that."""
        return nullcontext()

    @abstractmethod
    def put_if_match(self, key: str, data: bytes, *, current: bytes | None) -> bool:
        """Write a file only if it holds `current` now (None: if there is none); whether it was written."""

    @abstractmethod
    def delete_if_match(self, key: str, *, current: bytes) -> bool:
        """Delete a file only if it holds `current` now; whether it was deleted."""


def _no_plain_file(path: Path, kind: str) -> StoreError:
    return StoreError(f"{path} is {kind}; a store has plain files alone. Remove it, or copy the store with `cp -rL`.")
