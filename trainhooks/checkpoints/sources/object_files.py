"""Files in an object store (`s3://`, `gs://`), through the client that stores of this package use."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from trainhooks.checkpoints.base import CheckpointError
from trainhooks.checkpoints.sources.byte_source import WritableBytes, check_range
from trainhooks.store.errors import StoreError
from trainhooks.store.storage.object import ObjectStorage


@dataclass(frozen=True)
class ObjectFile:
    """An object; `size` in bytes and `digest`, its ETag, as the listing has them."""

    storage: ObjectStorage
    key: str
    size: int
    digest: str

    @property
    def name(self) -> str:
        """The URL."""
        return f"{self.storage}/{self.key}"

    @property
    def origin(self) -> str:
        """The URL with size and ETag."""
        return f"{self.name} {self.size} {self.digest}"

    def read(self, start: int, stop: int) -> WritableBytes:
        """Bytes [start, stop), in one request. Raises CheckpointError."""
        check_range(self, start, stop)
        try:
            held = bytearray(self.storage.read_range(self.key, start, stop))
        except OSError as error:
            raise CheckpointError(f"{self.name} cannot be read: {error}.") from error
        if len(held) != stop - start:
            raise CheckpointError(f"{self.name}: bytes {start} to {stop} were asked for, {len(held)} came.")
        return held


@dataclass(frozen=True)
class ObjectFolder:
    """What lies right below a prefix of a bucket."""

    storage: ObjectStorage
    prefix: str
    files: dict[str, ObjectFile]
    folders: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The URL."""
        return f"{self.storage}/{self.prefix}".rstrip("/")

    def open(self, name: str) -> ObjectFile:
        """A file by its name, here or further down; one further down takes a listing. Raises CheckpointError."""
        if name.startswith("/") or ".." in name.split("/"):
            raise CheckpointError(f"{self.name}: the file {name!r} lies outside the checkpoint; it is not opened.")
        inner, _, last = name.rpartition("/")
        files = self.below(inner).files if inner else self.files
        if last not in files:
            raise CheckpointError(f"{self.name} has no file {name}; it has {', '.join(sorted(self.files)[:12])}.")
        return files[last]

    def lacks(self, name: str) -> bool:
        """Whether there is no such file, as far as the listing says it."""
        return "/" not in name and name not in self.files

    def below(self, name: str) -> ObjectFolder:
        """One of `folders`. Raises CheckpointError."""
        return _listed(self.storage, f"{self.prefix}/{name}".strip("/"))


def open_object_folder(url: str) -> ObjectFolder:
    """What lies below `s3://bucket/prefix`, in one listing. Raises CheckpointError; ImportError without obstore."""
    parts = urlsplit(url)
    try:
        storage = ObjectStorage(f"{parts.scheme}://{parts.netloc}")
    except StoreError as error:
        raise CheckpointError(str(error)) from error
    return _listed(storage, parts.path.strip("/"))


def _listed(storage: ObjectStorage, prefix: str) -> ObjectFolder:
    try:
        objects, folders = storage.list_folder(prefix)
    except OSError as error:
        raise CheckpointError(f"{storage}/{prefix} cannot be listed: {error}.") from error
    files = {
        path.rpartition("/")[2]: ObjectFile(storage, path, size, digest) for path, (size, digest) in objects.items()
    }
    return ObjectFolder(storage, prefix, files, tuple(sorted(folders)))
