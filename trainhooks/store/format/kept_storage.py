"""A store as it was before a cut: what is kept aside of it, over what the store still has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NoReturn, TypeVar

from trainhooks.store.errors import StoreError
from trainhooks.store.format.root import METADATA, SPARE
from trainhooks.store.storage.base import JOURNAL, LOCK, ChecksumWriter, Storage

BRANCH_ROOT = "root.json"  # not zarr.json: readers of Zarr would take the folder for a group
Result = TypeVar("Result")


class KeptStorage(Storage):
    """The files of the branch in `folder`, and, where it has none of its own, those of the store around it.

    Read only. The branch's manifest says what each file must be, so that a file of the store that has changed since
    is noticed. Nobody holds it.
    """

    def __init__(self, storage: Storage, folder: str) -> None:
        self._storage, self._folder = storage, folder

    def __str__(self) -> str:
        return f"{self._storage}/{self._folder}"

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
        """See `Storage.read`."""
        return self._read(key, lambda name: self._storage.read(name, start, stop))

    def read_end(self, key: str, count: int) -> bytes:
        """See `Storage.read_end`."""
        return self._read(key, lambda name: self._storage.read_end(name, count))

    def mmap(self, key: str) -> memoryview:
        """See `Storage.mmap`."""
        return self._read(key, self._storage.mmap)

    def exists(self, key: str) -> bool:
        """See `Storage.exists`."""
        return self._storage.exists(self._own(key)) or (
            key not in (METADATA, SPARE, LOCK) and self._storage.exists(key)
        )

    def list(self, prefix: str = "") -> Iterator[str]:
        """See `Storage.list`."""
        folder = f"{self._folder}/{prefix}".rstrip("/")
        own = {key.removeprefix(f"{self._folder}/") for key in self._storage.list(folder)}
        yield from own
        if prefix != JOURNAL:
            others = (key for key in self._storage.list(prefix) if not key.startswith("."))
            yield from (key for key in others if "/" in key and key not in own)

    def list_dir(self, prefix: str = "") -> Iterator[str]:
        """See `Storage.list_dir`: the branch's own."""
        return self._storage.list_dir(f"{self._folder}/{prefix}".rstrip("/"))

    def size(self, prefix: str = "") -> int:
        """See `Storage.size`; files that both have count twice."""
        return self._storage.size(f"{self._folder}/{prefix}".rstrip("/")) + self._storage.size(prefix)

    def create(self) -> None:
        """See `Storage.create`."""
        self._refuse()

    def put_streamed(self, write: Callable[[ChecksumWriter], str]) -> ChecksumWriter:
        """See `Storage.put_streamed`."""
        self._refuse()

    def link(self, key: str, other: str) -> bool:
        """See `Storage.link`."""
        self._refuse()

    def delete(self, key: str) -> None:
        """See `Storage.delete`."""
        self._refuse()

    def put_if_match(self, key: str, data: bytes, *, current: bytes | None) -> bool:
        """See `Storage.put_if_match`."""
        self._refuse()

    def delete_if_match(self, key: str, *, current: bytes) -> bool:
        """See `Storage.delete_if_match`."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise StoreError(f"{self} is kept aside and is not changed. Copy it with `trainhooks snapshot --kept` first.")
