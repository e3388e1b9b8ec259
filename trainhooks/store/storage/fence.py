"""A place as its writer sees it: what it writes counts only while it holds the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TypeVar

from trainhooks.store.storage.base import ChecksumWriter, Storage

Result = TypeVar("Result")


class FencedStorage(Storage):
    """The files of `storage`, each named and deleted only after `check`, which raises where another holds the store.

    A writer may stand still anywhere, and wake when another has taken its store over. Who takes over deletes, after
    the lock has changed hands, every file that has no name yet. So a file that was begun before cannot be named any
    more, and one that is begun later is checked after that: between `check` and the rename nothing can go wrong. An
    object store has no renames; there a request that is under way at that moment still arrives.
    """

    def __init__(self, storage: Storage, check: Callable[[], None]) -> None:
        self._storage, self._check = storage, check

    def __str__(self) -> str:
        return str(self._storage)

    def create(self) -> None:
        """See `Storage.create`."""
        self._storage.create()

    def put_streamed(self, write: Callable[[ChecksumWriter], str]) -> ChecksumWriter:
        """See `Storage.put_streamed`."""

        def checked(file: ChecksumWriter) -> str:
            key = write(file)
            self._check()
            return key

        return self._there(lambda: self._storage.put_streamed(checked))

    def _there(self, ask: Callable[[], Result]) -> Result:
        """What `ask` gives; where a file is gone because another took over, that is what is said."""
        try:
            return ask()
        except FileNotFoundError:
            self._check()
            raise

    def settle(self) -> None:
        """See `Storage.settle`."""
        self._storage.settle()

    def read(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """See `Storage.read`."""
        return self._there(lambda: self._storage.read(key, start, stop))

    def read_end(self, key: str, count: int) -> bytes:
        """See `Storage.read_end`."""
        return self._there(lambda: self._storage.read_end(key, count))

    def mmap(self, key: str) -> memoryview:
        """See `Storage.mmap`."""
        return self._there(lambda: self._storage.mmap(key))

    def expect_maps(self, count: int) -> None:
        """See `Storage.expect_maps`."""
        self._storage.expect_maps(count)

    def size(self, prefix: str = "") -> int:
        """See `Storage.size`."""
        return self._storage.size(prefix)

    def room(self) -> int | None:
        """See `Storage.room`."""
        return self._storage.room()

    def link(self, key: str, other: str) -> bool:
        """See `Storage.link`."""
        with self._storage.alone():  # in there nobody takes the store over
            self._check()
            return self._storage.link(key, other)

    def exists(self, key: str) -> bool:
        """See `Storage.exists`."""
        return self._storage.exists(key)

    def list(self, prefix: str = "") -> Iterator[str]:
        """See `Storage.list`."""
        return self._storage.list(prefix)

    def list_dir(self, prefix: str = "") -> Iterator[str]:
        """See `Storage.list_dir`."""
        return self._storage.list_dir(prefix)

    def delete(self, key: str) -> None:
        """See `Storage.delete`."""
        with self._storage.alone():  # in there nobody takes the store over
            self._check()
            self._storage.delete(key)

    def tidy(self, folder: str) -> None:
        """See `Storage.tidy`."""
        self._storage.tidy(folder)

    def alone(self) -> AbstractContextManager[None]:
        """See `Storage.alone`."""
        return self._storage.alone()

    def put_if_match(self, key: str, data: bytes, *, current: bytes | None) -> bool:
        """See `Storage.put_if_match`."""
        return self._storage.put_if_match(key, data, current=current)

    def delete_if_match(self, key: str, *, current: bytes) -> bool:
        """See `Storage.delete_if_match`."""
        return self._storage.delete_if_match(key, current=current)
