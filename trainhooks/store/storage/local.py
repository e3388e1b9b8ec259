"""A folder on a disk as storage."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import resource
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from trainhooks.store.errors import StoreError
from trainhooks.store.storage.base import (
    ALONE_SECONDS,
    DURABILITIES,
    JOURNAL,
    LOCK,
    TEMPORARY,
    ChecksumWriter,
    Storage,
    _no_plain_file,
)

_SPARE_FILES = 256  # descriptors that are left to the rest of the process


class LocalStorage(Storage):
    """A folder. `durability` is "process" (survives the process' death) or "power" (files and folders are synced).

    With "process", too, files but the journal's are synced before they get their names, and the names by `settle`.

    Raises ValueError for another durability.
    """

    def __init__(self, path: str | Path, *, durability: str = "process") -> None:
        if durability not in DURABILITIES:
            raise ValueError(f"durability {durability!r} is not known; use one of {', '.join(DURABILITIES)}.")
        # as it is now: the process may change its folder
        self.path = Path(path).absolute()
        self._power = durability == "power"
        self._unsynced: set[Path] = set()  # folders that have new names

    def __str__(self) -> str:
        return str(self.path)

    def put_streamed(self, write: Callable[[ChecksumWriter], str]) -> ChecksumWriter:
        """See `Storage.put_streamed`; the temporary file lies in the store's own folder."""
        temporary = self.path / f".{uuid.uuid4().hex}{TEMPORARY}"
        try:
            with open(temporary, "xb", buffering=0) as raw:
                file = ChecksumWriter(raw)
                target = self._inside(write(file))
                lasting = self._power or (target.parent.name != JOURNAL and target.name != LOCK)
                if lasting:
                    sync(raw.fileno())
            made = self._make_folder(target.parent)
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if lasting:
            self._unsynced |= {target.parent, *(folder.parent for folder in made)}
        if self._power:
            self.settle()
        return file

    def settle(self) -> None:
        """See `Storage.settle`."""
        while self._unsynced:
            folder = self._unsynced.pop()
            with suppress(FileNotFoundError):  # deleted meanwhile
                sync_folder(folder)

    def _make_folder(self, folder: Path) -> list[Path]:
        """Make a folder and those above it; returns those that were not there."""
        if folder.is_dir():
            return []
        missing = [one for one in (folder, *folder.parents) if not one.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        return missing

    def _inside(self, key: str) -> Path:
        """Where a file lies. Raises StoreError for a key that is none, and where a folder on the way is a link."""
        parts = key.split("/")
        if "\0" in key or any(part in ("", ".", "..") for part in parts):
            raise StoreError(f"{self.path}: {key!r} is no name of a file in a store. Restore the store from a copy.")
        folder = str(self.path)  # text: a fold asks for hundreds of keys
        for part in parts[:-1]:
            folder = f"{folder}/{part}"
            if os.path.islink(folder):
                raise StoreError(
                    f"{folder} is a link; a store has folders and plain files alone. Copy it with `cp -rL`."
                )
        return Path(folder, parts[-1])

    def _folder(self, prefix: str) -> Path:
        """As `_inside`, for a folder that may be the place itself. Raises StoreError where it is a link."""
        return self._inside(f"{prefix}/_").parent if prefix else self.path

    def _open(self, key: str) -> BinaryIO:
        """A plain file for reading; nothing else is waited for or followed, such as a pipe or a link."""
        path = self._inside(key)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except NotADirectoryError as error:  # a file has the folder's name
            raise FileNotFoundError(error.errno, error.strerror, str(path)) from None
        except OSError as error:
            if not path.is_symlink() and error.errno != errno.ENXIO:  # a socket cannot be opened at all
                raise
            kind = "a link" if path.is_symlink() else "a socket"
            raise _no_plain_file(path, kind) from None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise _no_plain_file(path, "a folder" if path.is_dir() else "a pipe or a device")
        return os.fdopen(descriptor, "rb")

    def read(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """See `Storage.read`."""
        with self._open(key) as file:
            file.seek(start)
            return file.read() if stop is None else file.read(max(0, stop - start))

    def read_end(self, key: str, count: int) -> bytes:
        """See `Storage.read_end`."""
        with self._open(key) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - count))
            return file.read()

    def mmap(self, key: str) -> memoryview:
        """See `Storage.mmap`."""
        with self._open(key) as file:
            if not os.fstat(file.fileno()).st_size:
                return memoryview(b"")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def expect_maps(self, count: int) -> None:
        """See `Storage.expect_maps`: each mapped file holds a descriptor, of which a process often may have 1,024."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = _open_files() + count + _SPARE_FILES
        if soft == resource.RLIM_INFINITY or wanted <= soft:
            return
        most = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        with suppress(OSError, ValueError):  # what does not fit is said where it is opened
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))

    def size(self, prefix: str = "") -> int:
        """See `Storage.size`."""
        total = 0
        for key in self.list(prefix):
            with suppress(FileNotFoundError):
                total += (self.path / key).lstat().st_size
        return total

    def room(self) -> int | None:
        """See `Storage.room`."""
        return shutil.disk_usage(self.path).free

    def link(self, key: str, other: str) -> bool:
        """See `Storage.link`: a hard link; no file of a store is ever changed in place."""
        target = self._inside(other)
        made = self._make_folder(target.parent)
        try:
            os.link(self._inside(key), target, follow_symlinks=False)
        except FileNotFoundError:
            raise
        except OSError:  # this file system has none, or no more of them for this file
            return False
        self._unsynced |= {target.parent, *(folder.parent for folder in made)}
        return True

    def create(self) -> None:
        """See `Storage.create`."""
        for folder in self._make_folder(self.path):
            if self._power:
                sync_folder(folder.parent)

    def exists(self, key: str) -> bool:
        """See `Storage.exists`; False for a link, and for what lies behind one."""
        try:
            target = self._inside(key)
        except StoreError:
            return False
        return target.exists() and not target.is_symlink()

    def list(self, prefix: str = "") -> Iterator[str]:
        """See `Storage.list`."""
        for folder, _, names in os.walk(self._folder(prefix)):
            inside = Path(folder).relative_to(self.path)
            yield from ((inside / name).as_posix() for name in names)

    def list_dir(self, prefix: str = "") -> Iterator[str]:
        """See `Storage.list_dir`."""
        with suppress(FileNotFoundError, NotADirectoryError):
            yield from os.listdir(self._folder(prefix))

    def delete(self, key: str) -> None:
        """See `Storage.delete`; a link goes, and what it points to stays."""
        target = self._inside(key)
        if target.is_dir() and not target.is_symlink():
            # out of the way at once: what somebody writes there while this one goes on deleting stays
            aside = self.path / f".{uuid.uuid4().hex}{TEMPORARY}"
            target.replace(aside)
            shutil.rmtree(aside)
        else:
            target.unlink(missing_ok=True)

    def tidy(self, folder: str) -> None:
        """See `Storage.tidy`."""
        with suppress(OSError):  # not empty, or gone
            self._inside(folder).rmdir()

    def put_if_match(self, key: str, data: bytes, *, current: bytes | None) -> bool:
        """See `Storage.put_if_match`."""
        with self.alone():
            if self._content(key) != current:
                return False
            self.put(key, data)
            return True

    def delete_if_match(self, key: str, *, current: bytes) -> bool:
        """See `Storage.delete_if_match`."""
        with self.alone():
            if self._content(key) != current:
                return False
            self.delete(key)
            return True

    def _content(self, key: str) -> bytes | None:
        try:
            return self.read(key)
        except FileNotFoundError:
            return None

    def _lock_folder(self, lock: Callable[[], None]) -> None:
        until, pause = time.monotonic() + ALONE_SECONDS, 0.0002
        while True:
            try:
                lock()
                return
            except BlockingIOError as error:
                if time.monotonic() > until:
                    raise OSError(
                        f"another process has kept {self.path} to itself for {ALONE_SECONDS:.0f} s: it has been "
                        "stopped, or its disk hangs. Let it go on, or end it"
                    ) from error
            except OSError:  # the file system has no locks
                return
            time.sleep(pause)
            pause = min(2 * pause, 0.02)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No other process is in here for the same folder; where the file system has no locks, nothing is promised.

        Raises OSError where another stays inside: it has been stopped there, or its disk hangs.
        """

        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            self._lock_folder(lambda: fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB))
            yield
        finally:
            with suppress(OSError):  # or a child that was forked meanwhile would hold it as long as it lives
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


def _open_files() -> int:
    """Descriptors that this process has open; what most have where the system does not say."""
    try:
        return len(os.listdir("/dev/fd"))
    except OSError:
        return _SPARE_FILES


def sync(descriptor: int) -> None:
    """Wait until an open file's content, or a folder's entries, are on the disk."""
    os.fsync(descriptor)


def sync_folder(path: Path) -> None:
    """Wait until a folder's entries are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)
