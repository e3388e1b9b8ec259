"""Pages of mapped files: those of a matrix that is read once a record stay resident after it, unless they are let go.

A page of a file that was only read can be dropped: the next look reads it again, from the system's cache. A page that
was written to is a copy that lies nowhere else, and is never dropped; nor is memory that no file stands behind.
"""

from __future__ import annotations

import mmap
import os
import weakref
from contextlib import suppress

import numpy as np

_PAGE = mmap.PAGESIZE
_AROUND = 1 << 16  # a fault brings its neighbours in as well
_THERE, _OF_FILE = np.uint64(3 << 62), np.uint64(1 << 61)  # of an entry of /proc/self/pagemap: in memory or swapped

_maps: dict[int, _Mapped] = {}
_passing: set[int] = set()


class _Mapped:
    """A map that is alive, from `start` on in memory."""

    def __init__(self, mapped: mmap.mmap, start: int) -> None:
        self.start, self.stop = start, start + len(mapped)
        self._map = weakref.ref(mapped, self._forget)

    def _forget(self, _: object) -> None:
        if _maps.get(self.start) is self:
            del _maps[self.start]
            _passing.discard(self.start)

    def drop(self, start: int, stop: int) -> bool:
        """Drop the whole pages in [start, stop) of memory; False where one of them was written to."""
        mapped = self._map()
        begin = max(self.start, (start - _AROUND) // _PAGE * _PAGE)
        end = (stop if stop < self.stop else stop + _PAGE - 1) // _PAGE * _PAGE
        if mapped is None or begin >= end:
            return mapped is not None
        if not _as_in_file(begin, end):
            return False
        try:
            mapped.madvise(mmap.MADV_DONTNEED, begin - self.start, end - begin)
        except OSError:  # pages that are locked in memory
            return False
        return True


def remember(mapped: mmap.mmap) -> None:
    """Know a private map of a file, made just now."""
    address = int(np.frombuffer(mapped, dtype=np.uint8).ctypes.data)
    _maps[address] = _Mapped(mapped, address)


def let_go(address: int) -> bool:
    """Drop the pages of the map that holds this address, and from now on those of each part that `was_read`.

    False where no file that is known stands behind it, where a page was written to, and where the system does not tell.
    """
    found = _map_at(address)
    if found is None or not found.drop(found.start, found.stop):
        return False
    _passing.add(found.start)
    return True


def any_let_go() -> bool:
    """Whether there is a map whose parts are to be told when they `was_read`."""
    return bool(_passing)


def was_read(address: int, size: int) -> None:
    """The `size` bytes at `address` are not looked at again in this pass: drop their pages if their map was let go."""
    found = _map_at(address)
    if found is not None and found.start in _passing and not found.drop(address, address + size):
        _passing.discard(found.start)


def _map_at(address: int) -> _Mapped | None:
    return next((one for one in list(_maps.values()) if one.start <= address < one.stop), None)


def _as_in_file(start: int, stop: int) -> bool:
    """Whether the pages in memory are the file's own, none a copy that was written to; False where that is not told."""
    wanted = (stop - start) // _PAGE * 8
    entries = np.empty(0, dtype=np.uint64)
    with suppress(OSError):
        descriptor = os.open("/proc/self/pagemap", os.O_RDONLY)
        try:
            entries = np.frombuffer(os.pread(descriptor, wanted, start // _PAGE * 8), dtype=np.uint64)
        finally:
            os.close(descriptor)
    return entries.nbytes == wanted and bool(((entries & _OF_FILE != 0) | (entries & _THERE == 0)).all())
