"""The beginning of a hub's file, where headers are: fetched in one request, and kept."""

from __future__ import annotations

import hashlib

from trainhooks.checkpoints.sources.byte_source import WritableBytes, check_range
from trainhooks.checkpoints.sources.hub import HubFile
from trainhooks.checkpoints.tensor_cache import TensorCache

AHEAD = 1 << 13  # a header of 60 tensors; beside the smallest head this is nothing
MOST_KEPT = 1 << 20
LENGTH_BYTES = 8  # of a safetensors file, before its header


class KeptBegin:
    """A hub's file whose beginning comes once: 8 KiB together, and more where a read from there wants it.

    A read of more than 1 MiB is a tensor's or a very long header's, and passes. `cache` keeps the beginning beside
    tensors: of a file that was fetched whole and has the hash that the hub lists, for every commit of the repository;
    of any other for its own commit. `ahead` are bytes that come with the beginning, for one read of a tensor there.
    """

    def __init__(self, file: HubFile, cache: TensorCache, *, ahead: int = 0) -> None:
        self._file, self._cache, self._ahead = file, cache, ahead
        self._begin: bytes | None = None
        self._fetched: WritableBytes = bytearray()

    @property
    def name(self) -> str:
        """What messages call it."""
        return self._file.name

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self._file.size

    def read(self, start: int, stop: int) -> WritableBytes:
        """Bytes [start, stop). Raises CheckpointError."""
        check_range(self, start, stop)
        if start >= AHEAD or stop - start > MOST_KEPT:
            return self._beyond(start, stop)
        begin = self._kept()
        if stop > len(begin):
            begin = self._longer(begin, min(self.size, max(stop, AHEAD)))
            self._keep(begin)
        if start > LENGTH_BYTES:  # a tensor's
            self._fetched = bytearray()
        return bytearray(begin[start:stop])

    def _longer(self, begin: bytes, length: int) -> bytes:
        if self._ahead and not begin:
            self._fetched = self._file.read(0, min(self.size, length + self._ahead))
        held = max(begin, bytes(self._fetched[:length]), key=len)
        return held + bytes(self._file.read(len(held), length)) if len(held) < length else held

    def _beyond(self, start: int, stop: int) -> WritableBytes:
        """A tensor, from what has come with the beginning as far as that goes; it is let go then."""
        fetched, self._fetched = self._fetched, bytearray()
        if start >= len(fetched):
            return self._file.read(start, stop)
        held = memoryview(fetched)[start:stop]
        return held if stop <= len(fetched) else bytearray(held) + self._file.read(len(fetched), stop)

    def _kept(self) -> bytes:
        if self._begin is None:
            found = self._cache.get_bytes(self._file.content) or self._cache.get_bytes(self._file.origin)
            self._begin = found if found is not None and len(found) <= self.size else b""
        return self._begin

    def _keep(self, begin: bytes) -> None:
        self._begin = begin
        whole = len(begin) == self.size and self._file.digest in _hashes(begin)
        self._cache.put_bytes(self._file.content if whole else self._file.origin, begin)


def _hashes(data: bytes) -> tuple[str, str]:
    """What a hub lists for a file of these bytes: in LFS, and as git has it."""
    return hashlib.sha256(data).hexdigest(), hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
