"""How a place is written: a path, `org/name@revision:folder`, `hf://` and hub URLs, `https://`, `s3://` and `gs://`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from trainhooks.checkpoints.weight_files import WEIGHT_SUFFIXES

REPOSITORY = re.compile(r"\w[\w.-]*/[\w.-]+")
_HUB = re.compile(r"(?P<repo>\w[\w.-]*/[\w.-]+)(?:@(?P<revision>[^:@]+)(?::(?P<folder>.+))?)?")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://")
_HUBS = ("huggingface.co", "hf.co")
_INNER = ("model_and_optim", "pytorch_model_fsdp_0", "weights", "model", "hf", "unsharded")  # a step's folder's folder
_CACHED = re.compile(r"models--(?P<owner>[\w.-]+?)--(?P<name>[\w.-]+)")


@dataclass(frozen=True)
class HubPlace:
    """A hub repository, one of its revisions, and a folder in that; the latter two may be open ("")."""

    repo: str
    revision: str = ""
    folder: str = ""

    def __str__(self) -> str:
        revision = self.revision or ("main" if self.folder else "")
        return self.repo + (f"@{revision}" if revision else "") + (f":{self.folder}" if self.folder else "")


def is_remote(text: str) -> bool:
    """Whether a place is a URL that is read by this package itself: HTTP and object stores, no hub."""
    return bool(_SCHEME.match(text)) and hub_place(text) is None


def hub_place(text: str) -> HubPlace | None:
    """What a text names at a hub, None where it is nothing of the kind.

    Read are `org/name`, `org/name@revision`, `org/name@revision:folder`, `hf://org/name[@revision][/folder]`, and a
    page's address, `https://huggingface.co/org/name[/tree/revision[/folder]]` (or at HF_ENDPOINT).
    """
    if text.startswith("hf://"):
        return _of_hf_url(text.removeprefix("hf://"))
    if text.startswith(("http://", "https://")):
        return _of_page(text)
    match = _HUB.fullmatch(text)
    return (
        None if match is None else HubPlace(match["repo"], match["revision"] or "", (match["folder"] or "").strip("/"))
    )


def _of_hf_url(text: str) -> HubPlace | None:
    plain = hub_place(text)  # hf://org/name@revision, where a revision may hold slashes as it is written here
    if plain is not None and (not plain.revision or "/" not in plain.revision):
        return plain
    match = re.fullmatch(
        r"(?P<repo>\w[\w.-]*/[\w.-]+)(?:@(?P<revision>refs/[^/]+/[^/]+|[^/:@]+))?(?:/(?P<folder>.+))?", text
    )
    if match is None:
        return None
    return HubPlace(match["repo"], unquote(match["revision"] or ""), (match["folder"] or "").strip("/"))


def _of_page(text: str) -> HubPlace | None:
    parts = urlsplit(text)
    own = urlsplit(os.environ.get("HF_ENDPOINT", "")).netloc
    if parts.netloc.removeprefix("www.") not in {*_HUBS, own} - {""}:
        return None
    path = unquote(parts.path).strip("/").split("/")
    if len(path) < 2 or not REPOSITORY.fullmatch("/".join(path[:2])):
        return None
    repo, rest = "/".join(path[:2]), path[2:]
    if not rest:
        return HubPlace(repo)
    if rest[0] not in ("tree", "resolve", "blob", "commits") or len(rest) < 2:
        return None
    return HubPlace(repo, rest[1], "/".join(rest[2:]))


def repository_of(location: str) -> HubPlace | None:
    """The hub repository that a checkpoint is of: by its place, or by the hub's local cache that its path lies in."""
    if not os.path.lexists(location):
        return hub_place(location)
    for part in Path(os.path.abspath(location)).parts:
        if match := _CACHED.fullmatch(part):
            return HubPlace(f"{match['owner']}/{match['name']}")
    return None


def names_in(place: str) -> Iterator[str]:
    """The parts of a place that may name its step, the most telling first."""
    hub = None if os.path.lexists(place) else hub_place(place)
    if hub is not None:
        yield from reversed([part for part in hub.folder.split("/") if part])
        yield from filter(None, (hub.revision, hub.repo.partition("/")[2]))
        return
    path = urlsplit(place).path if _SCHEME.match(place) else os.path.abspath(place)
    parts = [part for part in path.split("/") if part]
    yield from parts[-1:]
    if parts and (parts[-1].endswith(WEIGHT_SUFFIXES) or parts[-1] in _INNER):
        yield from parts[-2:-1]
