"""A store as it was before a cut: what is kept aside of it, over what the store still has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NoReturn, TypeVar

from trainhooks.store.errors import StoreError
from trainhooks.store.format.root import METADATA, SPARE
from trainhooks.store.storage.base import JOURNAL, LOCK, Checksummed, Data, Place

BRANCH_ROOT = "root.json"  # not zarr.json: readers of Zarr would take the folder for a group
Result = TypeVar("Result")


class KeptPlace(Place):
    """The files of the branch in `folder`, and, where it has none of its own, those of the store around it.

    Read only. The branch's manifest says what each file must be, so that a file of the store that has changed since
    is noticed. Nobody holds it.
    """

    def __init__(self, place: Place, folder: str) -> None:
        self._place, self._folder = place, folder

    def __str__(self) -> str:
        return f"{self._place}/{self._folder}"

    def _own(self, key: str) -> str:
        return f"{self._folder}/{BRANCH_ROOT if key == METADATA else key}"

    def _read(self, key: str, read: Callable[[str], Result]) -> Result:
        try:
            return read(self._own(key))
        except FileNotFoundError:
            # root, manifest, journal and lock are the branch's own or none
            if "/c/" not in key and not key.endswith(f"/{METADATA}"):
                raise
            return read(key)

    def read(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """See `Place.read`."""
        return self._read(key, lambda name: self._place.read(name, start, stop))

    def read_end(self, key: str, count: int) -> bytes:
        """See `Place.read_end`."""
        return self._read(key, lambda name: self._place.read_end(name, count))

    def view(self, key: str) -> memoryview:
        """See `Place.view`."""
        return self._read(key, self._place.view)

    def exists(self, key: str) -> bool:
        """See `Place.exists`."""
        return self._place.exists(self._own(key)) or (key not in (METADATA, SPARE, LOCK) and self._place.exists(key))

    def list(self, prefix: str = "") -> Iterator[str]:
        """See `Place.list`."""
        folder = f"{self._folder}/{prefix}".rstrip("/")
        own = {key.removeprefix(f"{self._folder}/") for key in self._place.list(folder)}
        yield from own
        if prefix != JOURNAL:
            others = (key for key in self._place.list(prefix) if not key.startswith("."))
            yield from (key for key in others if "/" in key and key not in own)

    def children(self, prefix: str = "") -> Iterator[str]:
        """See `Place.children`: the branch's own."""
        return self._place.children(f"{self._folder}/{prefix}".rstrip("/"))

    def size(self, prefix: str = "") -> int:
        """See `Place.size`; files that both have count twice."""
        return self._place.size(f"{self._folder}/{prefix}".rstrip("/")) + self._place.size(prefix)

    def make(self) -> None:
        """See `Place.make`."""
        self._refuse()

    def put(self, key: str, data: Data) -> Checksummed:
        """See `Place.put`."""
        self._refuse()

    def put_streamed(self, write: Callable[[Checksummed], str]) -> Checksummed:
        """See `Place.put_streamed`."""
        self._refuse()

    def link(self, key: str, other: str) -> bool:
        """See `Place.link`."""
        self._refuse()

    def delete(self, key: str) -> None:
        """See `Place.delete`."""
        self._refuse()

    def put_if(self, key: str, data: bytes, *, current: bytes | None) -> bool:
        """See `Place.put_if`."""
        self._refuse()

    def delete_if(self, key: str, *, current: bytes) -> bool:
        """See `Place.delete_if`."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise StoreError(f"{self} is kept aside and is not changed. Copy it with `trainhooks snapshot --kept` first.")
