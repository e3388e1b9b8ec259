"""The beginning of a hub's file, where headers are: fetched in one request, and kept."""

from __future__ import annotations

import hashlib

from trainhooks.checkpoints.sources.byte_source import WritableBytes, check_range
from trainhooks.checkpoints.sources.hub import HubFile
from trainhooks.checkpoints.tensor_cache import TensorCache

AHEAD = 1 << 13  # a header of 60 tensors; beside the smallest head this is nothing
MOST_KEPT = 1 << 20


class KeptBegin:
    """A hub's file whose beginning comes once: 8 KiB together, and more where a read from there wants it.

    A read of more than 1 MiB is a tensor's or a very long header's, and passes. `cache` keeps the beginning beside
    tensors: of a file that was fetched whole and has the hash that the hub lists, for every commit of the repository;
    of any other for its own commit.
    """

    def __init__(self, file: HubFile, cache: TensorCache) -> None:
        self._file, self._cache = file, cache
        self._begin: bytes | None = None

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
            return self._file.read(start, stop)
        begin = self._kept()
        if stop > len(begin):
            whole = min(self.size, max(stop, AHEAD))
            begin = begin + bytes(self._file.read(len(begin), whole))
            self._keep(begin)
        return bytearray(begin[start:stop])

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
