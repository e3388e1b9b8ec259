"""The files of a store's place, listed as they are written; zarr-python reads them through it, and writes none."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, MutableMapping
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import StorePath

from trainhooks.store.errors import StoreError
from trainhooks.store.storage.base import ChecksumWriter, Data, Storage
from trainhooks.store.storage.checksum import unsealed

FileList = MutableMapping[str, tuple[int, str]]


class ManifestStore(Store):
    """A Zarr store over a place, for reading alone. `files` lists what was written: key -> (bytes, CRC-32 as 8 hex
    digits); `put` and its like write in the caller's thread."""

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(self, storage: Storage, *, files: FileList | None = None) -> None:
        super().__init__(read_only=True)
        self.storage = storage
        self.files: FileList = {} if files is None else files
        self.bytes_written = 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ManifestStore) and other.storage is self.storage

    def __hash__(self) -> int:
        return id(self.storage)

    def __str__(self) -> str:
        return str(self.storage)

    def put(self, key: str, data: Data) -> None:
        """Write a file, and list it."""
        # not listed while it is written: where that is interrupted, nobody knows which of the two is there
        self.files.pop(key, None)
        self.note(key, self.storage.put(key, data))

    def put_streamed(self, key: str, write: Callable[[ChecksumWriter], str]) -> None:
        """Let `write` fill a file whose key it returns, and list it."""
        self.files.pop(key, None)
        self.note(key, self.storage.put_streamed(write))

    def note(self, key: str, written: ChecksumWriter) -> None:
        """List a file that was written beside zarr."""
        self.files[key] = (written.size, f"{written.crc32:08x}")
        self.bytes_written += written.size

    def relist(self, key: str) -> None:
        """List a file as it lies there now; no more where it has gone."""
        try:
            content = self.storage.mmap(key)
        except FileNotFoundError:
            self.files.pop(key, None)
        else:
            self.files[key] = (len(content), f"{zlib.crc32(content):08x}")

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """A file or a range of it; None where there is none."""
        try:
            data = await asyncio.to_thread(self._read, key, byte_range)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            if key in self.files and "/c/" in key:  # zarr would take it for a chunk of missing values
                raise StoreError(f"{self.storage} has lost {key}; `trainhooks verify` says what it held.") from None
            return None
        return prototype.buffer.from_bytes(data)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Several files or ranges."""
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def exists(self, key: str) -> bool:
        """Whether there is such a file."""
        return await asyncio.to_thread(self.storage.exists, key)

    async def set(self, key: str, value: Buffer) -> None:
        """Refused: zarr-python writes nothing here."""
        self._check_writable()

    async def delete(self, key: str) -> None:
        """Refused: zarr-python deletes nothing here."""
        self._check_writable()

    async def list(self) -> AsyncIterator[str]:
        """Every file's key."""
        async for key in self.list_prefix(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """The keys of files whose key begins so."""
        folder = prefix.rpartition("/")[0]
        for key in await asyncio.to_thread(lambda: list(self.storage.list(folder))):
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Names directly in a folder."""
        for name in await asyncio.to_thread(lambda: list(self.storage.list_dir(prefix))):
            yield name

    def _read(self, key: str, part: ByteRequest | None) -> bytes:
        if isinstance(part, RangeByteRequest):
            return self._whole(key, self.storage.read(key, part.start, part.end), part.end - part.start)
        if isinstance(part, OffsetByteRequest):
            return self._whole(key, self.storage.read(key, part.offset), 1)
        if isinstance(part, SuffixByteRequest):
            return self._whole(key, self.storage.read_end(key, part.suffix), part.suffix)
        return self._whole(key, self.storage.read(key), 1)

    def _whole(self, key: str, content: bytes, size: int) -> bytes:
        if len(content) < size:  # zarr takes an empty shard for one of missing values
            raise StoreError(
                f"{self.storage}/{key} is damaged: it is cut short. `trainhooks verify` says what it held."
            )
        return content


def open_array(store: ManifestStore, name: str, metadata: Mapping[str, Any]) -> zarr.Array[Any]:
    """An array as some metadata declare it, whatever its own file says."""
    return zarr.Array.from_dict(StorePath(store, name), dict(metadata))


def read_array(
    store: ManifestStore, name: str, metadata: Mapping[str, Any], where: tuple[slice | int, ...] = (slice(None),)
) -> np.ndarray:
    """Some of an array's entries, by zarr-python. Raises StoreError, with the chunk's name, where one is damaged."""
    try:
        return np.asarray(open_array(store, name, metadata)[where])
    except OSError:
        raise
    except StoreError:
        raise
    except Exception as error:  # what a codec makes of damaged bytes is its own affair
        raise StoreError(
            f"{store}/{_damaged_chunk(store, name)} is damaged ({type(error).__name__}: {error}). "
            "`trainhooks verify` says what it held; restore it from a copy."
        ) from error


def _damaged_chunk(store: ManifestStore, name: str) -> str:
    """The first chunk of an array whose own checksum does not fit; the array's name where all do."""
    for key in sorted(key for key in store.files if key.startswith(f"{name}/c/")):
        try:
            unsealed(store.storage.read(key), where=key)
        except (FileNotFoundError, StoreError):
            return key
    return name
