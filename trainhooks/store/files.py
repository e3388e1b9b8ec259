"""Writing files so that they are there whole or not at all, and stay after a power cut."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Callable
from pathlib import Path

from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

TEMPORARY = ".partial"
METADATA = "zarr.json"


def replace_file(path: Path, write: Callable[[Path], object]) -> int:
    """Let `write` fill a temporary file beside `path`, sync it, rename it onto `path`; returns its bytes."""
    temporary = path.with_name(f".{uuid.uuid4().hex}{TEMPORARY}")
    try:
        write(temporary)
        sync(temporary)
        size = temporary.stat().st_size
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return size


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class DurableStore(LocalStore):
    """A local Zarr store whose files are synced before they are renamed into place; counts the bytes it writes."""

    bytes_written: int = 0

    async def set(self, key: str, value: Buffer) -> None:
        """Write one key, durably."""
        self._check_writable()
        # not `+= await`: that reads the count before other writes have added to it
        size = await asyncio.to_thread(self._write, self.root / key, value)
        self.bytes_written += size

    def set_sync(self, key: str, value: Buffer) -> None:
        """Write one key, durably, from a plain function."""
        self._check_writable()
        self.bytes_written += self._write(self.root / key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write one key unless it is there."""
        if not (self.root / key).exists():
            await self.set(key, value)

    @staticmethod
    def _write(path: Path, value: Buffer) -> int:
        path.parent.mkdir(parents=True, exist_ok=True)
        size = replace_file(path, lambda temporary: temporary.write_bytes(value.as_buffer_like()))
        # an array's own metadata may fall back to the older one: the root's is what counts
        if path.name != METADATA:
            sync(path.parent)
        return size
