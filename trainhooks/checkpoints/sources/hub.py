"""Files of a hub repository by HTTP range, through huggingface_hub's own session, headers and authorization.

Why not its file system: that fetches more than it is asked for, and takes a server's answer for the range it wanted
even where the server sent something else. Here any answer but 206 with the exact Content-Range is closed unread.
"""

from __future__ import annotations

import importlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from trainhooks.checkpoints.base import CheckpointError
from trainhooks.checkpoints.sources.byte_source import MOST_SIZE, ByteSource, WritableBytes, check_range
from trainhooks.checkpoints.sources.deadline import OverdueError, within
from trainhooks.checkpoints.sources.hub_answers import RETRY_STATUS, TIMEOUT_SECONDS, hub_pages, transport_errors

RETRIES = 5
WAIT_SECONDS = 0.5  # before the first retry; doubles
LONGEST_WAIT_SECONDS = 300.0  # the hub counts requests in windows of five minutes
LIMITED_SECONDS = 60.0  # where it answers 429 and does not say for how long: five such waits outlast a window
CHUNK_BYTES = 1 << 20
MOST_FILES = 100_000  # of one folder
MOST_SECONDS, SLOWEST = 60.0, 20_000  # a request may take this long, and a second more for each 20 kB
COMMIT = re.compile(r"[0-9a-f]{40,64}")


def require_hub() -> Any:
    """The huggingface_hub package. Raises ImportError that names the extra."""
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise ImportError(
            "reading from a hub needs huggingface_hub: pip install 'trainhooks[hub]', or download the files."
        ) from error


@dataclass(frozen=True)
class HubFile:
    """A file at a fixed commit of a hub repository; `size` in bytes and `digest` as the hub's listing has them.

    `digest` is the LFS SHA-256, or git's blob id for a file that is not in LFS. `place` is the file in its repository,
    at whatever commit. Redirects are followed; the authorization goes to the hub's host alone (the client drops it on a
    change of origin).
    """

    url: str
    size: int
    digest: str
    name: str
    place: str

    @property
    def content(self) -> str:
        """The file of its repository with this size and hash, at whatever commit."""
        return f"{self.place} {self.size} {self.digest}"

    @property
    def origin(self) -> str:
        """Where the file lies for good: its address at a commit, with the size and hash it is listed with."""
        return f"{self.url} {self.size} {self.digest}"

    def read(self, start: int, stop: int) -> WritableBytes:
        """Bytes [start, stop), in one request unless it breaks: then from where it broke, up to five times more on
        408, 429, 5xx, timeouts, broken connections and short answers, after 0.5, 1, 2, ... seconds or what the server
        asks for (300 at most; a minute where it answers 429 and asks for nothing). Raises CheckpointError on any other
        answer, and when the retries are used up."""
        check_range(self, start, stop)
        try:
            progress = _Progress(bytearray(stop - start), start)
        except MemoryError as error:
            raise CheckpointError(f"{self.name}: {stop - start} bytes are more than there is memory for.") from error
        wait, failure = WAIT_SECONDS, ""
        for attempt in range(RETRIES + 1):
            if not progress.missing:
                break
            if attempt:
                time.sleep(min(max(wait, progress.asked_wait), LONGEST_WAIT_SECONDS))
                wait *= 2
                progress.asked_wait = 0.0
            try:
                failure = self._in_time(progress)
            except transport_errors() as error:
                failure = f"{type(error).__name__}: {error}"
            except (CheckpointError, KeyboardInterrupt):
                raise
            except Exception as error:  # redirects without end, addresses that are none: the HTTP library's own
                told = f"{type(error).__name__}: {str(error)[:200]}"
                raise CheckpointError(f"{self.name}: the hub's answer cannot be read: {told}.") from error
        if progress.missing:
            raise CheckpointError(
                f"{self.name}: bytes {start} to {stop} did not come in {RETRIES + 1} tries: {failure}."
            )
        return progress.buffer

    def _in_time(self, progress: _Progress) -> str:
        """`_request`, given up where the hub drips."""
        try:
            return within(MOST_SECONDS + progress.missing / SLOWEST, lambda: self._request(progress))
        except OverdueError:
            raise CheckpointError(f"{self.name}: the hub sends less than {SLOWEST} bytes a second.") from None

    def _request(self, progress: _Progress) -> str:
        """Fetch what is missing; returns why it is still missing, "" when it is not."""
        from huggingface_hub.errors import OfflineModeIsEnabled
        from huggingface_hub.utils import build_hf_headers, get_session

        first, last = progress.position, progress.start + len(progress.buffer) - 1
        headers = build_hf_headers(library_name="trainhooks")
        headers |= {"Range": f"bytes={first}-{last}", "Accept-Encoding": "identity"}
        try:
            with get_session().stream(
                "GET", self.url, headers=headers, timeout=TIMEOUT_SECONDS, follow_redirects=True
            ) as response:
                if response.status_code in RETRY_STATUS:
                    progress.asked_wait = _asked_wait(response)
                    return f"the server answers {response.status_code}"
                self._check(response, expected=f"bytes {first}-{last}/{self.size}")
                for chunk in response.iter_raw(CHUNK_BYTES):
                    progress.take(chunk, name=self.name)
        except OfflineModeIsEnabled as error:
            raise CheckpointError(f"{self.name} lies at a hub and offline mode is on: unset HF_HUB_OFFLINE.") from error
        return f"the answer ended {progress.missing} bytes short" if progress.missing else ""

    def _check(self, response: Any, *, expected: str) -> None:
        status, told = response.status_code, response.headers.get("Content-Range")
        if status in (401, 403, 404):
            raise CheckpointError(f"{self.name}: the hub answers {status}: no such file, or no access with this token.")
        if status != 206 or told != expected or response.headers.get("Content-Encoding", "identity") != "identity":
            raise CheckpointError(
                f"{self.name}: asked for {expected!r}, got {status} with Content-Range {told!r}. It does "
                "not serve ranges, so its bytes would be the wrong ones: download the file and give its folder."
            )


@dataclass
class _Progress:
    buffer: bytearray
    start: int
    filled: int = 0
    asked_wait: float = 0.0

    @property
    def position(self) -> int:
        return self.start + self.filled

    @property
    def missing(self) -> int:
        return len(self.buffer) - self.filled

    def take(self, chunk: bytes, *, name: str) -> None:
        if len(chunk) > self.missing:
            raise CheckpointError(f"{name}: the server sent more bytes than its Content-Range says.")
        self.buffer[self.filled : self.filled + len(chunk)] = chunk
        self.filled += len(chunk)


def _as_it_is(file: HubFile) -> ByteSource:
    return file


@dataclass(frozen=True)
class HubFolder:
    """The files of a repository's revision, by name, at the commit the revision had when it was listed: of its root,
    or of the folder `path` in it. `folders` are the names of those right below.

    `further` are all files below the root by their path, where the listing has them; `opened_as` makes of a file what
    `open` gives.
    """

    repo: str
    revision: str
    commit: str
    files: dict[str, HubFile]
    folders: tuple[str, ...] = ()
    path: str = ""
    further: Mapping[str, HubFile] | None = None
    opened_as: Callable[[HubFile], ByteSource] = field(default=_as_it_is, compare=False)

    @property
    def name(self) -> str:
        """repo@revision, and the folder."""
        return f"{self.repo}@{self.revision}" + (f"/{self.path}" if self.path else "")

    def open(self, name: str) -> ByteSource:
        """A file by the name it has here; one request lists the subfolder it lies in, where that has not been listed.
        Raises CheckpointError."""
        parent = name.rpartition("/")[0]
        if name not in self.files and parent:
            self.files.update(self._listed(parent)[0])
        if name not in self.files:
            raise CheckpointError(f"{self.name} has no file {name}; it has {', '.join(sorted(self.files)[:12])}.")
        return self.opened_as(self.files[name])

    def lacks(self, name: str) -> bool:
        """Whether the listing says that there is no such file; False where a subfolder has not been listed."""
        listed = "/" not in name or (self.further is not None and self._at(name) not in self.further)
        return name not in self.files and listed

    def below(self, name: str) -> HubFolder:
        """One of `folders`; one request lists it, where that has not been done. Raises CheckpointError."""
        files, folders = self._listed(name)
        inner = {path.removeprefix(f"{name}/"): file for path, file in files.items()}
        return replace(self, files=inner, folders=folders, path=self._at(name))

    def root(self) -> HubFolder | None:
        """The whole revision, where all its files are listed."""
        if self.further is None:
            return None
        files, folders = _right_in("", self.further)
        return replace(self, files=files, folders=folders, path="")

    def _at(self, name: str) -> str:
        return f"{self.path}/{name}" if self.path else name

    def _listed(self, name: str) -> tuple[dict[str, HubFile], tuple[str, ...]]:
        """A folder further down: its files by their path from here, and the names of the folders in it."""
        if self.further is not None:
            files, folders = _right_in(self._at(name), self.further)
        else:
            files, folders = _list(self.repo, revision=self.revision, commit=self.commit, under=self._at(name))
        return {path.removeprefix(f"{self.path}/" if self.path else ""): file for path, file in files.items()}, folders


def _right_in(path: str, listed: Mapping[str, HubFile]) -> tuple[dict[str, HubFile], tuple[str, ...]]:
    """Of all files of a repository those right in the folder `path` ("": the root), and the folders in it."""
    under = f"{path}/" if path else ""
    below = {name: name.removeprefix(under) for name in listed if name.startswith(under)}
    files = {name: listed[name] for name, here in below.items() if "/" not in here}
    return files, tuple(sorted({here.partition("/")[0] for here in below.values() if "/" in here}))


def list_hub_folder(
    repo: str, *, revision: str | None = None, commit: str | None = None, under: str = ""
) -> HubFolder | Path:
    """The files of a hub repository's revision (default: main), or of the folder `under` in it: one request where
    `commit` says what it stands for, or where the hub lists files with their hashes beside the commit; else two.

    In offline mode (HF_HUB_OFFLINE): the snapshot in the hub's local cache, as a folder. Raises CheckpointError where
    there is no such repository, revision or snapshot; ImportError without huggingface_hub.
    """
    hub = require_hub()
    from huggingface_hub import constants

    revision = revision or "main"
    if constants.HF_HUB_OFFLINE:
        try:
            return Path(hub.snapshot_download(repo, revision=revision, local_files_only=True)) / under
        except (OSError, ValueError) as error:  # what huggingface_hub raises derives from them
            told = str(error).strip().splitlines() or [type(error).__name__]
            raise CheckpointError(f"{repo}@{revision} cannot be listed: {told[0]}") from error
    commit = revision if COMMIT.fullmatch(revision) else commit
    if not commit:
        commit, files = _described(repo, revision=revision)
        if files:
            root = HubFolder(repo, revision, commit, *_right_in("", files), further=files)
            return root.below(under) if under else root
    if under:
        return HubFolder(repo, revision, commit, {}).below(under)
    return HubFolder(repo, revision, commit, *_list(repo, revision=revision, commit=commit, under=None))


def _described(repo: str, *, revision: str) -> tuple[str, dict[str, HubFile]]:
    """A revision's commit and all its files by path; no files where the hub does not tell sizes and hashes."""
    with _listing(f"{repo}@{revision}"):
        address = f"{_api(repo)}/revision/{quote(revision, safe='')}"
        (told,) = hub_pages(f"{address}?blobs=true", shorter=address)  # then folders are listed as they are opened
        commit = told.get("sha") if isinstance(told, dict) else None
        if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
            raise CheckpointError("the hub's answer names no commit.")
        siblings = told.get("siblings")
        files: dict[str, HubFile] = {}
        for one in siblings if isinstance(siblings, list) else []:
            if not isinstance(one, dict) or type(one.get("size")) is not int or len(files) == MOST_FILES:
                return commit, {}
            lfs = one.get("lfs")
            entry = {"path": one.get("rfilename"), "size": one["size"], "oid": one.get("blobId")}
            entry |= {"lfs": {"oid": lfs.get("sha256")}} if isinstance(lfs, dict) else {}
            files[str(entry["path"])] = _listed(entry, repo=repo, revision=revision, commit=commit)
    return commit, files


def list_hub_revisions(repo: str) -> dict[str, str]:
    """A repository's branches and tags by name, each with its commit, "" where the hub does not tell it. One request;
    in offline mode those that the hub's local cache has.

    Raises CheckpointError; ImportError without huggingface_hub.
    """
    require_hub()
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE and (kept := _cached_revisions(repo)):
        return dict.fromkeys(kept, "")
    with _listing(repo):
        (refs,) = hub_pages(f"{_api(repo)}/refs")
        if not isinstance(refs, dict):
            raise CheckpointError(f"the hub's answer is a JSON {type(refs).__name__}, no lists of branches and tags.")
        branches, tags = (_commits(refs.get(kind) or []) for kind in ("branches", "tags"))
        return branches | dict.fromkeys(tags, "")  # a tag may be an object of its own: the hub is asked


def _cached_revisions(repo: str) -> list[str]:
    """The revisions of a repository that were downloaded, by the files that the cache keeps their commits in."""
    from huggingface_hub import constants

    refs = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}" / "refs"
    return sorted(str(path.relative_to(refs)) for path in refs.rglob("*") if path.is_file()) if refs.is_dir() else []


def _commits(refs: Any) -> dict[str, str]:
    if not isinstance(refs, list) or not all(
        isinstance(ref, dict) and isinstance(ref.get("name"), str) for ref in refs
    ):
        raise CheckpointError("the hub's answer has branches or tags that are no list of names.")
    told = {ref["name"]: ref.get("targetCommit") for ref in refs}
    return {
        name: commit if isinstance(commit, str) and COMMIT.fullmatch(commit) else "" for name, commit in told.items()
    }


@contextmanager
def _listing(name: str) -> Iterator[None]:
    try:
        yield
    except (CheckpointError, ValueError) as error:  # ValueError: more pages than one
        raise CheckpointError(f"{name} cannot be listed: {str(error).strip()[:400]}") from error


def _api(repo: str) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/api/models/{quote(repo)}"


def _list(repo: str, *, revision: str, commit: str, under: str | None) -> tuple[dict[str, HubFile], tuple[str, ...]]:
    """The files of one folder of a commit, by their path from the root, and the names of the folders in it."""
    below = f"/{quote(under)}" if under else ""
    files: dict[str, HubFile] = {}
    folders: list[str] = []
    with _listing(f"{repo}@{revision}"):
        for page in hub_pages(f"{_api(repo)}/tree/{commit}{below}?recursive=false&expand=false"):
            if not isinstance(page, list):
                raise CheckpointError(f"the hub's answer is a JSON {type(page).__name__}, no list of files.")
            for entry in page:
                if isinstance(entry, dict) and entry.get("type") == "file":
                    file = _listed(entry, repo=repo, revision=revision, commit=commit)
                    files[entry["path"]] = file
                elif (
                    isinstance(entry, dict) and entry.get("type") == "directory" and isinstance(entry.get("path"), str)
                ):
                    folders.append(entry["path"].rpartition("/")[2])
            if len(files) + len(folders) > MOST_FILES:
                raise CheckpointError(f"it has more than {MOST_FILES} files in one folder.")
    return files, tuple(sorted(folders))


def _listed(entry: dict[str, Any], *, repo: str, revision: str, commit: str) -> HubFile:
    """A file as the hub lists it. Raises CheckpointError for a size, path or hash that is none."""
    hub = require_hub()
    from huggingface_hub import constants

    path, size, lfs = entry.get("path"), entry.get("size"), entry.get("lfs")
    digest = lfs.get("oid") if isinstance(lfs, dict) else entry.get("oid")
    if not isinstance(path, str) or not isinstance(digest, str):
        raise CheckpointError(
            f"the hub lists a file whose path {str(path)[:80]!r} or hash {str(digest)[:80]!r} is no text."
        )
    if type(size) is not int or not 0 <= size < MOST_SIZE:
        raise CheckpointError(
            f"the hub lists {path[:200]!r} with a size of {str(size)[:40]!r}; needed whole bytes from 0."
        )
    return HubFile(
        url=hub.hf_hub_url(repo, path, revision=commit, endpoint=constants.ENDPOINT),
        size=size,
        digest=digest,
        name=f"{repo}@{revision}/{path}",
        place=f"{constants.ENDPOINT} {repo} {path}",
    )


def _asked_wait(response: Any) -> float:
    """Seconds the server asks to be left alone: until its limit is reset, or what Retry-After says."""
    from huggingface_hub import utils

    limit = getattr(utils, "parse_ratelimit_headers", lambda _: None)(response.headers)  # absent before 1.2
    if response.status_code == 429 and limit is not None and not limit.remaining:
        return float(limit.reset_in_seconds) + 1.0  # it is told in whole seconds
    told = response.headers.get("Retry-After", "")
    if told.isdecimal():
        return float(told)
    return LIMITED_SECONDS if response.status_code == 429 else 0.0
