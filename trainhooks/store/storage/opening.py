"""Storage from a path or a URL."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from trainhooks.store.errors import StoreError
from trainhooks.store.storage.base import Storage
from trainhooks.store.storage.local import LocalStorage


def open_storage(where: str | Path | Storage, *, durability: str = "process") -> Storage:
    """The place that a path or a URL (`s3://bucket/prefix`) names; a URL's durability is its server's.

    Raises ValueError for an unknown durability; StoreError for a URL that names nothing, or that lost its `//` in a
    `Path`; ImportError where object storage is not installed.
    """
    if isinstance(where, Storage):
        return where
    if is_url(where):
        if str(where).startswith("file://"):
            return LocalStorage(url2pathname(urlsplit(str(where)).path), durability=durability)
        from trainhooks.store.storage.object import ObjectStorage

        return ObjectStorage(str(where))
    return LocalStorage(where, durability=durability)


def is_url(where: object) -> bool:
    """Whether this is a URL and no path. Raises StoreError for one that lost a slash: `Path("s3://b")` is `s3:/b`."""
    if isinstance(where, Path) and re.match(r"(s3|gs|az|memory|file|https?):/", str(where)):
        raise StoreError(f"{where} was a URL and became a path; pass it as text.")
    return isinstance(where, str) and "://" in where
