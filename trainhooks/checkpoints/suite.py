"""What is in a checkpoint suite: its steps in order, and where each checkpoint lies."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urljoin, urlsplit

from trainhooks.checkpoints.base import Checkpoint, CheckpointError
from trainhooks.checkpoints.known_suites import KnownSuite, known_suite
from trainhooks.checkpoints.manifest import is_manifest, parse_manifest, read_manifest
from trainhooks.checkpoints.named import AmbiguousNames, Axis, CheckpointRef, Named, unread_note
from trainhooks.checkpoints.names import ParsedName, parse_name, stem_of
from trainhooks.checkpoints.opening import is_local, open_checkpoint
from trainhooks.checkpoints.patterns import HINT, check_units, compiled, matched, pattern_for
from trainhooks.checkpoints.places import HubPlace, hub_place, is_remote, names_in
from trainhooks.checkpoints.series import ALL, Choice, Series, one_series
from trainhooks.checkpoints.sources.http_files import http_text
from trainhooks.checkpoints.sources.hub import HubFolder, list_hub_revisions
from trainhooks.checkpoints.sources.hub_listing import list_hub_commits, list_hub_entries, list_hub_repositories
from trainhooks.checkpoints.sources.remote import list_remote
from trainhooks.checkpoints.steps import parse_steps
from trainhooks.checkpoints.store_suite import is_store, open_snapshot, snapshot_steps
from trainhooks.checkpoints.weight_files import WEIGHT_SUFFIXES
from trainhooks.core.formatting import shortened

__all__ = ["AmbiguousNames", "CheckpointRef", "Kind", "Suite", "list_runs", "list_suite", "step_of"]

Kind = Literal["folder", "hub", "store", "list", "url"]
Pattern = re.Pattern[str]
Places = list[tuple[str, str]]

_REPOSITORIES = re.compile(r"\w[\w.-]*/[\w.*?-]*[*?][\w.*?-]*")
_KNOWN_FORMS = "step{N}, checkpoint-{N}, global_step{N}, iter_{N}, step=N, step{N}-tokens{N}B, stage1-step{N}, {N}B ..."
_INNER = "checkpoints"


@dataclass(frozen=True)
class Suite:
    """A run's checkpoints, by ascending step, no step twice, at least one.

    `name` is the repository's id, or the folder as given; `wanted` the steps asked for, of which some may be missing
    (None: all that there are). `axis` says what the steps are: updates, tokens seen, or chunks of data. `unread` are
    names that are in no step, `notes` what was done to make one series, in words. `transposed` is the key of a matrix
    that the checkpoints store as [dim, vocab]. `commits` are those that a hub listed with its revisions, by location.
    What was opened of a hub stays open (headers only): a revision is listed once, also for other processes.
    """

    name: str
    entries: tuple[CheckpointRef, ...]
    kind: Kind = "folder"
    wanted: tuple[int, ...] | None = None
    axis: Axis = "step"
    unread: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    transposed: str | None = None
    commits: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    _opened: dict[str, Checkpoint] = field(default_factory=dict, compare=False, repr=False)
    _listings: dict[str, HubFolder] = field(default_factory=dict, compare=False, repr=False)

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps, ascending."""
        return tuple(entry.step for entry in self.entries)

    @property
    def told(self) -> tuple[str, ...]:
        """What is to be said of how it was put together: stages that count anew, names that are in no step."""
        return (*self.notes, *filter(None, (unread_note(self.unread),)))

    def with_transposed(self, key: str | None) -> Suite:
        """The same suite, this matrix being stored as [dim, vocab]. Raises ValueError without a key."""
        if key is None:
            raise ValueError(
                "transposed needs the key of the matrix that is stored [dim, vocab]: pass head (--head KEY)."
            )
        return replace(self, transposed=key, _opened={})

    def open(self, entry: CheckpointRef) -> Checkpoint:
        """Open one checkpoint, headers only. Raises CheckpointError where it cannot be read."""
        if self.kind == "store":
            return open_snapshot(self.name, step=entry.step)
        location = entry.location
        if is_local(location):
            return open_checkpoint(location, transposed=self.transposed)
        if location not in self._opened:
            commit = self.commits.get(location)
            self._opened[location] = open_checkpoint(
                location, commit=commit, transposed=self.transposed, listings=self._listings
            )
        return self._opened[location]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}, "_listings": dict(self._listings)}  # another thread may add to it


def list_suite(
    source: str | Path | Sequence[str | Path],
    *,
    revision_pattern: str | None = None,
    steps: str | Iterable[int] | None = None,
    by: str | None = None,
    stage: str | Sequence[str] | None = None,
    seed: str | int | None = None,
    manifest: str | Path | None = None,
    preset: str | None = None,
) -> Suite:
    """List a suite; nothing but names is read.

    `source` is a folder whose entries (folders, or files `.pt`, `.ckpt` ...) have steps in their names, a store with
    output embeddings, a hub repository (`owner/name`, `hf://`, its page's address) whose branches, tags, subfolders or
    commits have, a pattern of repositories (`owner/name-step-*`), a text file of places (one a line, `#` begins a
    comment, relative to the file), a manifest (`.csv`, `.yaml`), or a sequence of places. `docs/suites.md` says how
    names are read.

    `revision_pattern` replaces that: a regular expression that fits a whole name, with one group or a group `step`;
    it may have groups `tokens`, `stage` and `seed`. `by` "tokens" puts the series on an axis of tokens; `stage` takes
    one stage, or several in this order; `seed` one run of several. `manifest` is a table of the suite's checkpoints,
    whose places are relative to it, to the folder `source`, or revisions of the repository `source`. `preset` is a
    known suite (`trainhooks suites`): the order of its stages, which also counts where the repository is one of it, and
    its seed. `steps` is a
    selection as `parse_steps` reads it; steps that are missing stay in `wanted`.

    Raises AmbiguousNames, a ValueError, where names could be several series; ValueError where nothing fits, two entries
    have one step, or no step that was asked for is there; ImportError where a hub repository is asked for without
    huggingface_hub.
    """
    pattern = None if revision_pattern is None else compiled(revision_pattern)
    choice = Choice.of(by=by, stage=stage, seed=seed, preset=preset)
    pattern = pattern or _known_pattern(choice.known)
    if manifest is not None:
        suite = _from_manifest(Path(manifest), choice, within=source)
    else:
        suite = _listed(source, pattern, choice)
    return suite if steps is None else _selected(suite, steps)


def list_runs(
    source: str | Path | Sequence[str | Path], *, seed: str | int | None = None, **options: Any
) -> tuple[Suite, ...]:
    """`list_suite`; with the seed "all" each run of several seeds as a suite of its own. Raises as that does."""
    if seed != ALL:
        return (list_suite(source, seed=seed, **options),)
    try:
        return (list_suite(source, seed=ALL, **options),)
    except AmbiguousNames as error:
        if not error.seeds:
            raise
        seeds = error.seeds
    return tuple(list_suite(source, seed=one, **options) for one in seeds)


def _listed(source: str | Path | Sequence[str | Path], pattern: Pattern | None, choice: Choice) -> Suite:
    if not isinstance(source, (str, Path)):
        places = [_plain(str(place)) for place in source]
        return _suite("list", "list", [(_label(place, pattern), place) for place in places], pattern, choice)
    text = str(source)
    if os.path.isdir(text):
        return _from_folder(text, pattern, choice)
    if os.path.isfile(text):
        return _from_file(Path(source), pattern, choice)
    if _REPOSITORIES.fullmatch(text):
        return _from_repositories(text, pattern, choice)
    place = hub_place(text)
    if place is None and is_remote(text):
        return _from_url(text, pattern, choice)
    if place is None:
        raise ValueError(
            f"{source} is no folder, no text file and no hub repository (owner/name). Give one of these, or paths."
        )
    return _from_hub(place, pattern, choice)


def step_of(name: str, *, pattern: Pattern | None = None) -> tuple[int, str] | None:
    """The step in a name and the form that fits, None where none does; the file suffix is left out.

    A `pattern` replaces the built-in reading.
    """
    parsed = _parsed(name, pattern)
    if parsed is None:
        return None
    value = next(value for value in (parsed.step, parsed.tokens, parsed.chunk) if value is not None)
    if pattern is not None:
        return value, pattern.pattern
    if parsed.form == ("step=N",):
        return value, "step=N"
    stem = stem_of(name)
    return value, stem[: parsed.span[0]] + "{N}" + stem[parsed.span[1] :]


def _parsed(name: str, pattern: Pattern | None) -> ParsedName | None:
    return parse_name(name) if pattern is None else matched(pattern, name)


def _from_folder(folder: str, pattern: Pattern | None, choice: Choice) -> Suite:
    if is_store(folder):
        found = snapshot_steps(folder)
        return Suite(folder, tuple(CheckpointRef(step, folder) for step in found), kind="store")
    places = _inside(folder)
    inner = os.path.join(folder, _INNER)
    if not _any_read(places, pattern) and os.path.isdir(inner) and _any_read(_inside(inner), pattern):
        places = _inside(inner)
    if not places and (others := sorted(os.listdir(folder))):
        shown = ", ".join(others[:3]) + (" ..." if len(others) > 3 else "")
        raise ValueError(
            f"{folder} holds {len(others)} files ({shown}), and none is a folder or a file of weights. Give the folder "
            "that the checkpoints lie in."
        )
    return _suite(folder, "folder", places, pattern, choice)


def _inside(folder: str) -> Places:
    # a link that leads nowhere stays listed: the audit says so, where leaving it out would hide it
    names = [
        entry.name
        for entry in os.scandir(folder)
        if os.path.isdir(entry.path) or entry.is_symlink() or entry.name.endswith(WEIGHT_SUFFIXES)
    ]
    return [(name, os.path.join(folder, name)) for name in sorted(names)]


def _from_manifest(path: Path, choice: Choice, *, within: str | Path | Sequence[str | Path] = "") -> Suite:
    whole = str(within) if isinstance(within, (str, Path)) else ""
    hub = None if not whole or os.path.lexists(whole) else hub_place(whole)

    def placed(place: str) -> str:
        if hub is not None and hub_place(place) is None and not (path.parent / place).exists():
            return str(HubPlace(hub.repo, place))
        inside = os.path.join(whole, place)
        return inside if os.path.isdir(whole) and os.path.lexists(inside) else beside(path, place)

    found = read_manifest(path, placed=placed)
    chosen = choice if choice.stages else replace(choice, stages=found.stages)
    return _of_series(whole or str(path), "list", one_series(str(path), found.rows, chosen), [])


def _from_file(path: Path, pattern: Pattern | None, choice: Choice) -> Suite:
    if is_manifest(path):
        return _from_manifest(path, choice)
    if path.name.endswith(WEIGHT_SUFFIXES):
        return _suite(str(path), "list", [(path.name, str(path))], pattern, choice)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text file of places: {error}. Give a folder, or one place a line.") from error
    places = [line.split("#")[0].strip() for line in lines]
    local = [beside(path, place) for place in places if place]
    return _suite(str(path), "list", [(_label(place, pattern), place) for place in local], pattern, choice)


def beside(path: Path, place: str) -> str:
    """A place as a file at `path` writes it: relative to that file, unless a hub or a URL is meant.

    `owner/name` is a hub's where no folder `owner` lies beside the file.
    """
    if is_remote(place):
        return place
    local = path.parent / place
    here = local.exists() or (path.parent / Path(place).parts[0]).is_dir() or place.endswith(WEIGHT_SUFFIXES)
    return str(local) if hub_place(place) is None or ("@" not in place and here) else _plain(place)


def _plain(place: str) -> str:
    """A place, a hub's in the one way that it is written here: `owner/name@revision:folder`."""
    hub = None if os.path.lexists(place) else hub_place(place)
    return place if hub is None else str(hub)


def _label(place: str, pattern: Pattern | None) -> str:
    """The part of a place that names the step: `run/step100/model.safetensors` is named by its folder."""
    names = list(names_in(place)) or [place]
    return next((name for name in names if _parsed(name, pattern) is not None), names[0])


def _from_hub(place: HubPlace, pattern: Pattern | None, choice: Choice) -> Suite:
    """Branches and tags; where none of them is a step, subfolders of the revision, and the commits that led to it."""
    if choice.known is None and pattern is None:
        choice = replace(choice, known=known_suite(place.repo))
        pattern = _known_pattern(choice.known)
    whole = not (place.revision or place.folder)
    names: Collection[str] = ()
    if whole:
        try:
            names = list_hub_revisions(place.repo)
        except CheckpointError as error:
            raise ValueError(
                f"{place.repo} is no local path, and its revisions cannot be listed at the hub: {error}"
            ) from error
    places = [(name, f"{place.repo}@{name}") for name in names]
    if not _any_read(places, pattern):
        places = _below_revision(place, pattern) or places
    suite = _suite(str(place), "hub", places, pattern, choice)
    listed = names if isinstance(names, Mapping) else {}
    return replace(suite, commits={f"{place.repo}@{name}": commit for name, commit in listed.items() if commit})


def _below_revision(place: HubPlace, pattern: Pattern | None) -> Places:
    """Subfolders of a revision that are named by steps, here or under `checkpoints`; else commits that are."""
    revision = place.revision or "main"
    try:
        for under in (place.folder, "/".join(filter(None, (place.folder, _INNER)))):
            below = list_hub_entries(place.repo, revision=revision, under=under)
            here = [(path.rpartition("/")[2], str(HubPlace(place.repo, revision, path))) for path in below]
            if _any_read(here, pattern):
                return here
            if under == place.folder and not any(label == _INNER for label, _ in here):
                break
        commits = [] if place.folder else list_hub_commits(place.repo, revision=revision)
    except CheckpointError:
        return []  # what its revisions are called is said
    here = _last_of_each(commits, place.repo, pattern)
    return here if _any_read(here, pattern) else []


def _last_of_each(commits: list[tuple[str, str]], repo: str, pattern: Pattern | None) -> Places:
    """Of the commits (the newest first) with one step the newest, where the step's files are all there."""
    kept: dict[str, tuple[str, str]] = {}
    for commit, title in commits:
        parsed = _parsed(title, pattern)
        if parsed is None or parsed.step is None or not parsed.sure:  # "Upload 3 files" is no step
            continue
        seed = f"seed {parsed.seed}" if parsed.seed else ""
        told = " ".join(filter(None, (parsed.stage, seed, f"step {parsed.step}")))
        kept.setdefault(told, (told if pattern is None else title, f"{repo}@{commit}"))
    return list(kept.values())


def _from_url(url: str, pattern: Pattern | None, choice: Choice) -> Suite:
    """Folders and files that a server or a bucket lists, or a manifest's address."""
    try:
        if is_manifest(urlsplit(url).path):
            text = http_text(url)[1].decode("utf-8", "replace")
            found = parse_manifest(text, name=urlsplit(url).path, placed=partial(urljoin, url))
            chosen = choice if choice.stages else replace(choice, stages=found.stages)
            return _of_series(url, "list", one_series(url, found.rows, chosen), [])
        files, folders = list_remote(url)
    except CheckpointError as error:
        raise ValueError(f"{url} cannot be listed: {error}") from error
    base = url.rstrip("/")
    by_http = base.startswith(("http://", "https://"))  # a file's name is quoted where it is opened
    places = [(name, f"{base}/{quote(name) if by_http else name}") for name in folders]
    places += [(name, f"{base}/{name}") for name in files if name.endswith(WEIGHT_SUFFIXES)]
    return _suite(url, "url", sorted(places), pattern, choice)


def _from_repositories(text: str, pattern: Pattern | None, choice: Choice) -> Suite:
    try:
        repos = list_hub_repositories(text)
    except CheckpointError as error:
        raise ValueError(f"{text} is no local path, and the hub's repositories cannot be listed: {error}") from error
    return _suite(text, "hub", [(_label(repo, pattern), repo) for repo in repos], pattern, choice)


def _known_pattern(known: KnownSuite | None) -> Pattern | None:
    return compiled(known.pattern) if known is not None and known.pattern else None


def _any_read(places: Places, pattern: Pattern | None) -> bool:
    return any(_parsed(label, pattern) is not None for label, _ in places)


def _suite(name: str, kind: Kind, places: Places, pattern: Pattern | None, choice: Choice) -> Suite:
    read = [(label, place, _parsed(label, pattern)) for label, place in places]
    found = [Named(label, place, parsed) for label, place, parsed in read if parsed is not None]
    unread = [label for label, _, parsed in read if parsed is None]
    if not found or (kind == "list" and unread):
        raise ValueError(f"{name}: {_nothing_found(unread, pattern)}")
    if pattern is not None:
        check_units(pattern, [one.name for one in found])
    return _of_series(name, kind, one_series(name, found, choice), unread)


def _of_series(name: str, kind: Kind, series: Series, unread: Sequence[str]) -> Suite:
    return Suite(
        name, series.entries, kind=kind, axis=series.axis, unread=(*unread, *series.unread), notes=series.notes
    )


def _nothing_found(unread: list[str], pattern: Pattern | None) -> str:
    wanted = _KNOWN_FORMS if pattern is None else repr(pattern.pattern)
    shown = f"found {', '.join(unread[:5])}" + (" ..." if len(unread) > 5 else "") if unread else "it is empty"
    offered = pattern_for([stem_of(name) for name in unread]) if pattern is None else ""
    hint = f"{HINT} One number alone differs: if it is the step, '{offered}'." if offered else HINT
    return f"no step can be read from these names ({wanted}): {shown}. {hint}"


def _selected(suite: Suite, steps: str | Iterable[int]) -> Suite:
    wanted = parse_steps(steps, available=suite.steps)
    asked = set(wanted)
    entries = tuple(entry for entry in suite.entries if entry.step in asked)
    if not entries:
        raise ValueError(
            f"{suite.name} has none of the steps asked for ({shortened(wanted)}); it has {shortened(suite.steps)}."
        )
    return replace(suite, entries=entries, wanted=wanted)
