"""What a hub lists beside a revision's files: subfolders, the commits of a branch, an owner's repositories."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import quote, urlencode

from trainhooks.checkpoints.base import CheckpointError
from trainhooks.checkpoints.sources.hub import require_hub
from trainhooks.checkpoints.sources.hub_answers import hub_pages
from trainhooks.checkpoints.weight_files import WEIGHT_SUFFIXES

MOST_NAMES = 200_000


def list_hub_entries(repo: str, *, revision: str, under: str = "") -> list[str]:
    """Folders and files of weights right in a folder of a revision, by their path from the root.

    Raises CheckpointError.
    """
    below = f"/{quote(under)}" if under else ""
    path = f"/api/models/{quote(repo)}/tree/{quote(revision, safe='')}{below}?recursive=false&expand=false"
    entries = _entries(path, f"{repo}@{revision}")
    paths = [(str(entry["path"]), entry.get("type")) for entry in entries if _is_text(entry, "path")]
    return [path for path, kind in paths if kind == "directory" or path.endswith(WEIGHT_SUFFIXES)]


def list_hub_commits(repo: str, *, revision: str) -> list[tuple[str, str]]:
    """A branch's commits, the newest first: hash and title. Raises CheckpointError."""
    path = f"/api/models/{quote(repo)}/commits/{quote(revision, safe='')}?limit=1000"
    entries = _entries(path, f"{repo}@{revision}")
    return [(str(entry["id"]), str(entry["title"])) for entry in entries if _is_text(entry, "id", "title")]


def list_hub_repositories(pattern: str) -> list[str]:
    """The ids of an owner's models that fit `owner/glob`, case and all. Raises CheckpointError."""
    owner, _, glob = pattern.partition("/")
    stem = glob.replace("?", "*").partition("*")[0]
    query = urlencode({"author": owner, "search": stem, "limit": 1000})
    entries = _entries(f"/api/models?{query}", pattern)
    ids = [str(entry["id"]) for entry in entries if _is_text(entry, "id")]
    return sorted({one for one in ids if fnmatchcase(one, pattern)})


def _entries(path: str, name: str) -> Iterator[dict[str, Any]]:
    """The objects of all pages of a listing."""
    require_hub()
    from huggingface_hub import constants

    seen = 0
    with _told(name):
        for page in hub_pages(f"{constants.ENDPOINT}{path}"):
            if not isinstance(page, list):
                raise CheckpointError(f"the hub's answer is a JSON {type(page).__name__}, no list.")
            seen += len(page)
            if seen > MOST_NAMES:
                raise CheckpointError(f"it lists more than {MOST_NAMES} names.")
            yield from (entry for entry in page if isinstance(entry, dict))


def _is_text(entry: dict[str, Any], *keys: str) -> bool:
    return all(isinstance(entry.get(key), str) for key in keys)


@contextmanager
def _told(name: str) -> Iterator[None]:
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{name} cannot be listed: {str(error).strip()[:400]}") from error
