"""A place as its writer sees it: what it writes counts only while it holds the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TypeVar

from trainhooks.store.storage.base import Checksummed, Data, Place

Result = TypeVar("Result")


class FencedPlace(Place):
    """The files of `place`, each named and deleted only after `check`, which raises where another holds the store.

    A writer may stand still anywhere, and wake when another has taken its store over. Who takes over deletes, after
    the lock has changed hands, every file that has no name yet. So a file that was begun before cannot be named any
    more, and one that is begun later is checked after that: between `check` and the rename nothing can go wrong. An
    object store has no renames; there a request that is under way at that moment still arrives.
    """

    def __init__(self, place: Place, check: Callable[[], None]) -> None:
        self._place, self._check = place, check

    def __str__(self) -> str:
        return str(self._place)

    def make(self) -> None:
        """See `Place.make`."""
        self._place.make()

    def put(self, key: str, data: Data) -> Checksummed:
        """See `Place.put`."""

        def write(file: Checksummed) -> str:
            file.write(data)
            return key

        return self.put_streamed(write)

    def put_streamed(self, write: Callable[[Checksummed], str]) -> Checksummed:
        """See `Place.put_streamed`."""

        def checked(file: Checksummed) -> str:
            key = write(file)
            self._check()
            return key

        return self._there(lambda: self._place.put_streamed(checked))

    def _there(self, ask: Callable[[], Result]) -> Result:
        """What `ask` gives; where a file is gone because another took over, that is what is said."""
        try:
            return ask()
        except FileNotFoundError:
            self._check()
            raise

    def settle(self) -> None:
        """See `Place.settle`."""
        self._place.settle()

    def read(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """See `Place.read`."""
        return self._there(lambda: self._place.read(key, start, stop))

    def read_end(self, key: str, count: int) -> bytes:
        """See `Place.read_end`."""
        return self._there(lambda: self._place.read_end(key, count))

    def view(self, key: str) -> memoryview:
        """See `Place.view`."""
        return self._there(lambda: self._place.view(key))

    def size(self, prefix: str = "") -> int:
        """See `Place.size`."""
        return self._place.size(prefix)

    def room(self) -> int | None:
        """See `Place.room`."""
        return self._place.room()

    def link(self, key: str, other: str) -> bool:
        """See `Place.link`."""
        with self._place.alone():  # in there nobody takes the store over
            self._check()
            return self._place.link(key, other)

    def exists(self, key: str) -> bool:
        """See `Place.exists`."""
        return self._place.exists(key)

    def list(self, prefix: str = "") -> Iterator[str]:
        """See `Place.list`."""
        return self._place.list(prefix)

    def children(self, prefix: str = "") -> Iterator[str]:
        """See `Place.children`."""
        return self._place.children(prefix)

    def delete(self, key: str) -> None:
        """See `Place.delete`."""
        with self._place.alone():  # in there nobody takes the store over
            self._check()
            self._place.delete(key)

    def tidy(self, folder: str) -> None:
        """See `Place.tidy`."""
        self._place.tidy(folder)

    def alone(self) -> AbstractContextManager[None]:
        """See `Place.alone`."""
        return self._place.alone()

    def put_if(self, key: str, data: bytes, *, current: bytes | None) -> bool:
        """See `Place.put_if`."""
        return self._place.put_if(key, data, current=current)

    def delete_if(self, key: str, *, current: bytes) -> bool:
        """See `Place.delete_if`."""
        return self._place.delete_if(key, current=current)
