"""Folders that a URL names, whatever serves it: HTTP or an object store."""

from __future__ import annotations

from trainhooks.checkpoints.base import CheckpointError
from trainhooks.checkpoints.sources.http_files import HttpFolder, list_http, open_http_folder
from trainhooks.checkpoints.sources.object_files import ObjectFolder, open_object_folder

OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "az", "azure", "abfs", "abfss")


def open_remote_folder(url: str) -> HttpFolder | ObjectFolder:
    """A folder at `https://`, `s3://`, `gs://` ...: what lies right in it. Raises CheckpointError."""
    scheme = url.partition(":")[0]
    if scheme in ("http", "https"):
        return open_http_folder(url)
    if scheme in OBJECT_STORES:
        return open_object_folder(url)
    raise CheckpointError(f"{url}: {scheme}:// is not read. Use a path, hf://, https://, s3:// or gs://.")


def list_remote(url: str) -> tuple[list[str], list[str]]:
    """Names of the files and of the folders right below a URL. Raises CheckpointError, also where it lists nothing."""
    if not url.startswith(("http://", "https://")):
        found = open_remote_folder(url)
        return sorted(found.files), sorted(found.folders)
    listed = list_http(url)
    if listed is None:
        raise CheckpointError(
            f"{url} lists no files. Give a manifest of the checkpoints' addresses (a CSV with place and step)."
        )
    return listed
