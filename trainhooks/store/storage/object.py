"""A store in an object store (S3 and others), through obstore: one object a file, put at once."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from trainhooks.store.errors import StoreError
from trainhooks.store.storage.base import ChecksumWriter, Storage
from trainhooks.store.storage.retries import tried_again

if TYPE_CHECKING:
    from obstore.store import ObjectStore

Result = TypeVar("Result")

PATIENCE_SECONDS = 30.0
_IN_MEMORY_BYTES = 16 << 20
_MESSAGE_CHARACTERS = 300


class ObjectStorage(Storage):
    """Files below a URL such as `s3://bucket/prefix`; a file is durable when the server has acknowledged it.

    Credentials, region and endpoint come from the environment (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, ...). Failed
    requests of every kind are tried again for `patience_seconds` in all (None: 30) where another try may pass: broken
    connections, timeouts, 408, 429, 5xx, 400 RequestTimeout; then the error is an OSError. The writer's lock
    needs a server with conditional writes (`If-Match`, `If-None-Match`). What is read whole and is large is kept in an
    unnamed temporary file, so that a fold needs local disk space for a block of the journal, not memory.

    `client` is an obstore store of your own, for settings that the environment does not have.

    Raises ImportError without obstore, StoreError for a URL that names nothing.
    """

    def __init__(self, url: str, *, client: ObjectStore | None = None, patience_seconds: float | None = None) -> None:
        self.url = url.rstrip("/")
        self._ob = _import_obstore()
        self._patience = patience_seconds or PATIENCE_SECONDS
        self._client: Any = _client(self.url, self._patience) if client is None else client

    def __str__(self) -> str:
        return self.url

    def create(self) -> None:
        """See `Storage.create`; a prefix needs no making."""

    def put_streamed(self, write: Callable[[ChecksumWriter], str]) -> ChecksumWriter:
        """See `Storage.put_streamed`: collected first, since the key is known last; large ones on the local disk."""
        with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES) as spool:
            file = ChecksumWriter(spool)
            key = write(file)

            def send() -> None:
                spool.seek(0)
                self._ob.put(self._client, key, spool)

            self._ask("write", key, send)
        return file

    def read(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """See `Storage.read`."""
        if stop is not None and stop <= start:
            return b""

        def fetch() -> bytes:
            if not start and stop is None:
                return bytes(self._ob.get(self._client, key).bytes())
            size = int(self._ob.head(self._client, key)["size"])
            end = size if stop is None else min(stop, size)
            return bytes(self._ob.get_range(self._client, key, start=start, end=end)) if start < end else b""

        return self._ask("read", key, fetch)

    def read_end(self, key: str, count: int) -> bytes:
        """See `Storage.read_end`."""
        size = self._ask("read", key, lambda: int(self._ob.head(self._client, key)["size"]))
        return self.read(key, max(0, size - count), size)

    def mmap(self, key: str) -> memoryview:
        """See `Storage.mmap`; downloads it."""
        return self._ask("read", key, lambda: self._download(key))

    def _download(self, key: str) -> memoryview:
        found = self._ob.get(self._client, key)
        if found.meta["size"] <= _IN_MEMORY_BYTES:
            return memoryview(bytes(found.bytes()))
        with tempfile.TemporaryFile() as file:
            for part in found:
                file.write(part)
            file.flush()
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def size(self, prefix: str = "") -> int:
        """See `Storage.size`."""
        return sum(int(one["size"]) for one in self._listed(prefix))

    def link(self, key: str, other: str) -> bool:
        """See `Storage.link`: the server copies, where it can (S3: objects of up to 5 GB)."""
        try:
            self._ask("copy", key, lambda: self._ob.copy(self._client, key, other))
        except FileNotFoundError:
            raise
        except OSError:
            return False
        return True

    def exists(self, key: str) -> bool:
        """See `Storage.exists`."""
        try:
            self._ask("read", key, lambda: self._ob.head(self._client, key))
        except FileNotFoundError:
            return any(True for _ in self.list(key))
        return True

    def list(self, prefix: str = "") -> Iterator[str]:
        """See `Storage.list`."""
        return (str(one["path"]) for one in self._listed(prefix))

    def _listed(self, prefix: str) -> Iterator[Any]:
        """What lies below a prefix, a page a request; one that fails is asked for again, after the last one's end."""
        last: str | None = None
        pages: Any = None

        def next_page() -> Any:
            nonlocal pages
            if pages is None:
                pages = iter(self._ob.list(self._client, prefix=prefix or None, offset=last))
            try:
                return next(pages, None)
            except Exception:
                pages = None
                raise

        while (page := self._ask("list", prefix, next_page)) is not None:
            yield from page
            last = str(page[-1]["path"]) if len(page) else last

    def list_dir(self, prefix: str = "") -> Iterator[str]:
        """See `Storage.list_dir`."""
        found = self._ask("list", prefix, lambda: self._ob.list_with_delimiter(self._client, prefix=prefix or None))
        paths = [*found["common_prefixes"], *(one["path"] for one in found["objects"])]
        yield from sorted({str(path).rstrip("/").rpartition("/")[2] for path in paths})

    def list_folder(self, prefix: str = "") -> tuple[dict[str, tuple[int, str]], Sequence[str]]:
        """The objects right below a prefix, by path: size (bytes) and ETag; and the names of the folders there."""
        found = self._ask("list", prefix, lambda: self._ob.list_with_delimiter(self._client, prefix=prefix or None))
        objects = {str(one["path"]): (int(one["size"]), str(one.get("e_tag") or "")) for one in found["objects"]}
        return objects, [str(path).rstrip("/").rpartition("/")[2] for path in found["common_prefixes"]]

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of an object that is known to be that long, in one request."""
        if stop <= start:
            return b""
        return self._ask("read", key, lambda: bytes(self._ob.get_range(self._client, key, start=start, end=stop)))

    def delete(self, key: str) -> None:
        """See `Storage.delete`."""
        for one in [key, *self.list(key)]:
            with suppress(FileNotFoundError):
                self._ask("delete", one, lambda one=one: self._ob.delete(self._client, one))  # type: ignore[misc]

    def put_if_match(self, key: str, data: bytes, *, current: bytes | None) -> bool:
        """See `Storage.put_if_match`: by `If-None-Match` and `If-Match`."""
        mode: Any = "create"
        if current is not None:
            try:
                content, meta = self._ask("read", key, lambda: self._content(key))
            except FileNotFoundError:
                return False
            if content != current:
                return False
            mode = {name: meta[name] for name in ("e_tag", "version") if meta.get(name) is not None}
        try:
            self._ask("write", key, lambda: self._ob.put(self._client, key, data, mode=mode, use_multipart=False))
        except _RefusedError:
            # a request that was tried again may have met what its first try had written
            return self._holds(key, data)
        return True

    def delete_if_match(self, key: str, *, current: bytes) -> bool:
        """See `Storage.delete_if_match`: emptied on condition, then deleted: S3 deletes on no condition."""
        if not self.put_if_match(key, b"", current=current):
            return False

        def delete_empty() -> None:
            # looked at before each try: a delete whose answer was lost is done, and what is there now is another's
            if self._content(key)[0] == b"":
                self._ob.delete(self._client, key)

        with suppress(FileNotFoundError):
            self._ask("delete", key, delete_empty)
        return True

    def _content(self, key: str) -> tuple[bytes, Any]:
        found = self._ob.get(self._client, key)
        return bytes(found.bytes()), found.meta

    def _holds(self, key: str, data: bytes) -> bool:
        try:
            return self.read(key) == data
        except FileNotFoundError:
            return False

    def _ask(self, action: str, key: str, request: Callable[[], Result]) -> Result:
        """A request's answer, tried again while that may help. Raises OSError."""
        exceptions = self._ob.exceptions
        # obstore's own tries and the last answer's timeout take the rest of the patience
        with self._errors(action, key):
            return tried_again(
                request, failures=(exceptions.GenericError, exceptions.JoinError), seconds=self._patience / 3
            )

    @contextmanager
    def _errors(self, action: str, key: str) -> Iterator[None]:
        """What obstore raises as OSErrors, with one line of it."""
        exceptions = self._ob.exceptions
        try:
            yield
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError) as error:
            raise _RefusedError(str(error)) from error
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{self.url}/{key} is not there") from error
        except exceptions.BaseError as error:
            line = str(error).strip().splitlines()[0][:_MESSAGE_CHARACTERS]
            raise OSError(f"cannot {action} {self.url}/{key}: {line}") from error


class _RefusedError(OSError):
    """The condition of a write did not hold."""


def _client(url: str, patience: float) -> Any:
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    if url.partition(":")[0] in ("memory", "file"):
        raise StoreError(
            f"{url}: a store at a URL outlives its process and is shared; pass a path, or s3://bucket/prefix."
        )
    # a sixth of the patience for tries here, a third for those around them (`tried_again`), half for the last answer
    retry: Any = {
        "max_retries": 10,
        "retry_timeout": timedelta(seconds=patience / 6),
        "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2},
    }
    options: Any = {
        "connect_timeout": timedelta(seconds=min(5.0, patience / 2)),
        "read_timeout": timedelta(seconds=patience / 2),
        "timeout": timedelta(hours=1),  # of a whole request: large shards take their time
        "allow_http": _endpoint().startswith("http://"),
    }
    try:
        return from_url(url, client_options=options, retry_config=retry)
    except (BaseError, ValueError, TypeError) as error:
        raise StoreError(f"{url} cannot be opened: {error}. Use a URL such as s3://bucket/prefix.") from error


def _endpoint() -> str:
    return (
        os.environ.get("AWS_ENDPOINT_URL_S3")
        or os.environ.get("AWS_ENDPOINT_URL")
        or os.environ.get("AWS_ENDPOINT", "")
    )


def _import_obstore() -> Any:
    try:
        import obstore
    except ImportError as error:
        raise ImportError("object storage needs obstore: pip install 'trainhooks[s3]'.") from error
    import obstore.exceptions

    return obstore
