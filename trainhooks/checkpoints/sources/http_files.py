"""Files behind plain HTTP: folders with a listing, or without one, where the usual names are asked for one by one.

No authorization is sent. As at a hub, any answer to a range but 206 with the exact Content-Range is not read.
"""

from __future__ import annotations

import http.client
import json
import posixpath
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urljoin, urlsplit

from trainhooks.checkpoints.base import CheckpointError
from trainhooks.checkpoints.sources.byte_source import MOST_SIZE, WritableBytes, check_range, load_json
from trainhooks.checkpoints.sources.deadline import OverdueError, within

TIMEOUT_SECONDS = 20.0
MOST_SECONDS, SLOWEST = 60.0, 20_000  # of a request, and a second more for each 20 kB
MOST_LISTING = 16 << 20
MOST_ENTRIES = 200_000
MOST_PAGE, MOST_TAG, MOST_LINK = 4 << 20, 1 << 16, 2048  # of a listing in HTML
RETRIES = 4
WAIT_SECONDS = 0.5
PASSING = (408, 429, 500, 502, 503, 504)
USUAL_FILES = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
    ".metadata", "model.pt", "config.json",
)  # fmt: skip
USUAL_FOLDERS = ("model_and_optim", "pytorch_model_fsdp_0", "weights")
MARKERS = (".metadata", "model.safetensors", "model.safetensors.index.json")

Result = TypeVar("Result")


@dataclass(frozen=True)
class HttpFile:
    """A file of known size (bytes) at an address; `digest` is its strong ETag, "" where it has none."""

    url: str
    size: int
    digest: str

    @property
    def name(self) -> str:
        """The address."""
        return self.url

    @property
    def origin(self) -> str:
        """The address with size and ETag."""
        return f"{self.url} {self.size} {self.digest}"

    def read(self, start: int, stop: int) -> WritableBytes:
        """Bytes [start, stop). Raises CheckpointError where the server does not give exactly these."""
        check_range(self, start, stop)
        if start == stop:
            return bytearray()
        wanted = f"bytes {start}-{stop - 1}/{self.size}"

        def fetch() -> bytearray:
            with _opened(self.url, {"Range": f"bytes={start}-{stop - 1}"}) as answer:
                told = answer.headers.get("Content-Range")
                if answer.status != 206 or told != wanted:
                    raise CheckpointError(
                        f"{self.url}: asked for {wanted!r}, got {answer.status} with Content-Range {told!r}. It does "
                        "not serve ranges: download the file and give its folder."
                    )
                held = bytearray(answer.read(stop - start))
            if len(held) != stop - start:
                raise OSError(f"the answer ended {stop - start - len(held)} bytes short")
            return held

        return _tried(self.url, fetch, seconds=MOST_SECONDS + (stop - start) / SLOWEST)


@dataclass(frozen=True)
class HttpFolder:
    """A folder at an address that ends in a slash. `files` are names right in it (their sizes are asked for when they
    are opened), `folders` those of folders; where the server lists nothing, those of the usual names that are there."""

    url: str
    files: dict[str, Any] = field(default_factory=dict)
    folders: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The address."""
        return self.url

    def open(self, name: str) -> HttpFile:
        """A file below the folder. Raises CheckpointError for a name that leads out, and where there is none."""
        held = self.files.get(name)
        if isinstance(held, HttpFile):
            return held
        if name.startswith("/") or ".." in name.split("/") or "\\" in name or "://" in name:
            raise CheckpointError(f"{self.url}: the file {name!r} lies outside the checkpoint; it is not opened.")
        file = _described(urljoin(self.url, quote(name)))
        if file is None:
            raise CheckpointError(f"{self.url} has no file {name}.")
        self.files[name] = file
        return file

    def lacks(self, name: str) -> bool:
        """Whether there is no such file, as far as the listing says it."""
        return "/" not in name and name not in self.files

    def below(self, name: str) -> HttpFolder:
        """One of `folders`. Raises CheckpointError."""
        return open_http_folder(urljoin(self.url, quote(name) + "/"))


def open_http_folder(url: str) -> HttpFolder:
    """A checkpoint's folder. Raises CheckpointError where the server does not answer or has none of the usual files."""
    url = url.rstrip("/") + "/"
    listed = list_http(url)
    if listed is not None:
        files, folders = listed
        return HttpFolder(url, dict.fromkeys(files), tuple(folders))
    found = {name: file for name in USUAL_FILES if (file := _described(url + name)) is not None}
    holding = [name for name in USUAL_FOLDERS if any(_described(f"{url}{name}/{mark}") for mark in MARKERS)]
    if not found and not holding and not url.rstrip("/").endswith(USUAL_FOLDERS):
        raise CheckpointError(f"{url} lists nothing and has none of {', '.join(USUAL_FILES)}.")
    return HttpFolder(url, dict(found), tuple(holding))


def list_http(url: str) -> tuple[list[str], list[str]] | None:
    """Names of files and of folders that a server lists at an address (an HTML or JSON index); None where it does not.

    Raises CheckpointError where the server does not answer.
    """
    url = url.rstrip("/") + "/"
    try:
        kind, body = http_text(url)
    except _AbsentError:
        return None
    if "json" in kind:
        return _json_names(body, url)
    if "html" not in kind:
        return None
    _check_page(body, url)
    parser = _Links()
    parser.feed(body.decode("utf-8", "replace"))
    names = {name for link in parser.links if (name := _inside(url, link))}
    return sorted(n for n in names if not n.endswith("/")), sorted(n[:-1] for n in names if n.endswith("/"))


def _check_page(body: bytes, url: str) -> None:
    """Raises CheckpointError for a page that the parser would take seconds and gigabytes for."""
    tags = body.count(b"<")
    if len(body) > MOST_PAGE or tags > 2 * MOST_ENTRIES:
        raise CheckpointError(
            f"{url} has {len(body)} bytes and {tags} tags; a listing of up to {MOST_PAGE >> 20} MiB and "
            f"{MOST_ENTRIES} names is read. Give a manifest."
        )
    if max(map(len, body.split(b"<"))) > MOST_TAG:
        raise CheckpointError(f"{url} is no listing: it has a tag or a text of more than {MOST_TAG} bytes.")


def http_text(url: str) -> tuple[str, bytes]:
    """A small document, at most 16 MB, and its content type. Raises CheckpointError."""

    def fetch() -> tuple[str, bytes]:
        with _opened(url, {}) as answer:
            body = answer.read(MOST_LISTING + 1)
            if len(body) > MOST_LISTING:
                raise CheckpointError(f"{url} has more than {MOST_LISTING >> 20} MiB.")
            return answer.headers.get("Content-Type", ""), body

    return _tried(url, fetch, seconds=MOST_SECONDS)


def _json_names(body: bytes, url: str) -> tuple[list[str], list[str]]:
    """nginx's own JSON index: objects with a name and a type."""
    if body.count(b"{") > MOST_ENTRIES:
        raise CheckpointError(f"{url} lists more than {MOST_ENTRIES} names.")
    try:
        entries = load_json(body)
    except ValueError as error:
        raise CheckpointError(f"{url}: its listing is no JSON that is read: {error}.") from error
    entries = [e for e in entries if isinstance(e, dict)] if isinstance(entries, list) else []
    named = [(str(e.get("name", "")), e.get("type")) for e in entries[:MOST_ENTRIES]]
    files = [name for name, kind in named if kind == "file" and _inside(url, quote(name))]
    return sorted(files), sorted(name for name, kind in named if kind == "directory" and _inside(url, quote(name)))


def _inside(url: str, link: str) -> str:
    """The name that a link has right below a folder, with its slash; "" for one that leads elsewhere."""
    try:
        there, here = urlsplit(urljoin(url, link)), urlsplit(url)
    except ValueError:  # no address at all: http://[
        return ""
    if there[:2] != here[:2] or there.query or not there.path.startswith(here.path):
        return ""
    name = unquote(there.path[len(here.path) :])
    first = name.rstrip("/")
    return (
        name if first and "/" not in first and first not in (".", "..") and posixpath.basename(first) == first else ""
    )


class _Links(HTMLParser):
    """The addresses of a page's links."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect an `href`."""
        if tag == "a" and len(self.links) < MOST_ENTRIES:
            self.links += [value for key, value in attrs if key == "href" and value and len(value) <= MOST_LINK]


class _AbsentError(CheckpointError):
    """Nothing there, or nothing that may be seen."""


def _described(url: str) -> HttpFile | None:
    """A file by its headers; None where there is none."""

    def fetch() -> HttpFile:
        with _opened(url, {}, method="HEAD") as answer:
            told = answer.headers.get("Content-Length", "")
            if not told.isdecimal() or int(told) >= MOST_SIZE:
                raise CheckpointError(f"{url}: the server tells no size ({told[:40]!r}); download the file.")
            tag = answer.headers.get("ETag", "")
            return HttpFile(url, int(told), "" if tag.startswith("W/") else tag[:200])

    try:
        return _tried(url, fetch, seconds=MOST_SECONDS)
    except _AbsentError:
        return None


def _opened(url: str, headers: dict[str, str], *, method: str = "GET") -> Any:
    sent = {"User-Agent": "trainhooks", "Accept-Encoding": "identity", **headers}
    if urlsplit(url).scheme not in ("http", "https"):
        raise CheckpointError(f"{url} is no address of HTTP.")
    return urllib.request.urlopen(urllib.request.Request(url, headers=sent, method=method), timeout=TIMEOUT_SECONDS)


def _tried(url: str, fetch: Callable[[], Result], *, seconds: float) -> Result:
    """What `fetch` gives, tried again while that may help."""
    wait = WAIT_SECONDS
    for attempt in range(RETRIES + 1):
        try:
            return within(seconds, fetch)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (401, 403, 404, 405, 410):
                raise _AbsentError(f"{url}: the server answers {error.code}.") from error
            if error.code not in PASSING or attempt == RETRIES:
                raise CheckpointError(f"{url}: the server answers {error.code}.") from error
            told = error.headers.get("Retry-After", "") if error.headers else ""
            time.sleep(max(wait, min(float(told), 300.0) if told.isdecimal() else 0.0))
        except OverdueError:
            raise CheckpointError(f"{url}: the server takes more than {seconds:.0f} s.") from None
        except (OSError, http.client.HTTPException) as error:
            if attempt == RETRIES:
                raise CheckpointError(f"{url} cannot be read: {type(error).__name__}: {str(error)[:200]}.") from error
            time.sleep(wait)
        except (json.JSONDecodeError, UnicodeError) as error:  # UnicodeError: an address that is not ASCII
            raise CheckpointError(f"{url} cannot be read: {error}.") from error
        wait *= 2
    raise AssertionError("unreachable")
