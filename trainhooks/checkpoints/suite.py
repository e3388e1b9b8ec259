"""What is in a checkpoint suite: its steps in order, and where each checkpoint lies."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainhooks.checkpoints.base import Checkpoint, CheckpointError
from trainhooks.checkpoints.opening import open_checkpoint
from trainhooks.checkpoints.sources.hub import list_hub_revisions
from trainhooks.checkpoints.steps import parse_steps
from trainhooks.checkpoints.store_suite import is_store, open_snapshot, snapshot_steps
from trainhooks.checkpoints.weight_files import WEIGHT_SUFFIXES
from trainhooks.core.formatting import shortened

Kind = Literal["folder", "hub", "store", "list"]

PATTERNS = {
    "global_step{N}": r"global_?step[-_]?(\d+)",
    "checkpoint-{N}": r"(?:checkpoint|ckpt)[-_](\d+)",
    "iter_{N}": r"iter(?:ation)?[-_](\d+)",
    "step=N": r"(?:.*[-_])?step=(\d+)(?:-.*)?",
    "step{N}": r"step[-_]?(\d+)",
}
_REPOSITORY = re.compile(r"[\w][\w.-]*/[\w.-]+")
_HINT = "Pass revision_pattern (--revision-pattern), a regular expression with one group, the step."


@dataclass(frozen=True)
class CheckpointRef:
    """One checkpoint of a suite: the `step` its name gives, its `location` (a path, or `repository@revision`)."""

    step: int
    location: str


@dataclass(frozen=True)
class Suite:
    """A run's checkpoints, by ascending step, no step twice, at least one.

    `name` is the repository's id, or the folder as given; `wanted` the steps asked for, of which some may be missing
    (None: all that there are).
    """

    name: str
    entries: tuple[CheckpointRef, ...]
    kind: Kind = "folder"
    wanted: tuple[int, ...] | None = None

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps, ascending."""
        return tuple(entry.step for entry in self.entries)

    def open(self, entry: CheckpointRef) -> Checkpoint:
        """Open one checkpoint, headers only. Raises CheckpointError where it cannot be read."""
        return open_snapshot(self.name, step=entry.step) if self.kind == "store" else open_checkpoint(entry.location)


def list_suite(
    source: str | Path | Sequence[str | Path],
    *,
    revision_pattern: str | None = None,
    steps: str | Iterable[int] | None = None,
) -> Suite:
    """List a suite; nothing but names is read.

    `source` is a folder whose entries are named `step{N}`, `checkpoint-{N}`, `global_step{N}`, `iter_{N}` (zero-padded
    or not; folders, or files `.pt`, `.ckpt` ...) or as Lightning does (`epoch=0-step=100.ckpt`), a store with output
    embeddings, a hub repository (`owner/name`) whose branches or tags are named so, a text file of places (one a
    line, `#` begins a comment, relative to the file), or a sequence of places. `revision_pattern` replaces the
    built-in names: a regular expression that fits a whole name, with one group or a group `step`. `steps` is a
    selection as `parse_steps` reads it; steps that are missing stay in `wanted`.

    Raises ValueError where nothing fits, names follow several patterns, two entries have one step, or no step that
    was asked for is there; ImportError where a hub repository is asked for without huggingface_hub.
    """
    pattern = None if revision_pattern is None else _compiled(revision_pattern)
    if not isinstance(source, (str, Path)):
        suite = _suite("list", "list", [(_step_name(str(place)), str(place)) for place in source], pattern)
    elif os.path.isdir(source):
        suite = _from_folder(str(source), pattern)
    elif os.path.isfile(source):
        suite = _from_file(Path(source), pattern)
    elif _REPOSITORY.fullmatch(str(source)):
        suite = _from_hub(str(source), pattern)
    else:
        raise ValueError(
            f"{source} is no folder, no text file and no hub repository (owner/name). Give one of these, or paths."
        )
    return suite if steps is None else _selected(suite, steps)


def step_of(name: str, *, pattern: re.Pattern[str] | None = None) -> tuple[int, str] | None:
    """The step in a name and the pattern that fits, None where none does; the file suffix is left out.

    A `pattern` replaces the built-in ones.
    """
    stem = next((name.removesuffix(suffix) for suffix in WEIGHT_SUFFIXES if name.endswith(suffix)), name)
    if pattern is not None:
        fits = pattern.fullmatch(name) or pattern.fullmatch(stem)
        return None if fits is None else (_matched_step(fits, name), pattern.pattern)
    for label, expression in PATTERNS.items():
        if fits := re.fullmatch(expression, stem, flags=re.ASCII):
            return int(fits[1]), label
    return None


def _matched_step(fits: re.Match[str], name: str) -> int:
    text = fits["step"] if "step" in fits.re.groupindex else fits[1]
    if text is None or not (text.isascii() and text.isdigit()):
        raise ValueError(f"the group of {fits.re.pattern!r} takes {text!r} out of {name!r}, which is no step. {_HINT}")
    return int(text)


def _compiled(expression: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise ValueError(f"{expression!r} is no regular expression ({error}). {_HINT}") from error
    if pattern.groups != 1 and "step" not in pattern.groupindex:
        raise ValueError(f"{expression!r} has {pattern.groups} groups; it needs one, or one named step. {_HINT}")
    return pattern


def _from_folder(folder: str, pattern: re.Pattern[str] | None) -> Suite:
    if is_store(folder):
        found = snapshot_steps(folder)
        return Suite(folder, tuple(CheckpointRef(step, folder) for step in found), kind="store")
    # a link that leads nowhere stays listed: the audit says so, where leaving it out would hide it
    names = [
        entry.name
        for entry in os.scandir(folder)
        if os.path.isdir(entry.path) or entry.is_symlink() or entry.name.endswith(WEIGHT_SUFFIXES)
    ]
    return _suite(folder, "folder", [(name, os.path.join(folder, name)) for name in sorted(names)], pattern)


def _from_file(path: Path, pattern: re.Pattern[str] | None) -> Suite:
    if path.name.endswith(WEIGHT_SUFFIXES):
        return _suite(str(path), "list", [(path.name, str(path))], pattern)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text file of places: {error}. Give a folder, or one place a line.") from error
    places = [line.split("#")[0].strip() for line in lines]
    local = [_beside(path, place) for place in places if place]
    return _suite(str(path), "list", [(_step_name(place), place) for place in local], pattern)


def _beside(path: Path, place: str) -> str:
    beside = path.parent / place
    return place if "@" in place and not beside.exists() else str(beside)


def _step_name(place: str) -> str:
    """The part of a place that names the step: a revision, or the last part of the path that a step can be read from.

    `run/step100/model.safetensors` is named by its folder.
    """
    if "@" in place and not os.path.exists(place):
        return place.rsplit("@", maxsplit=1)[1]
    path = Path(os.path.abspath(place))
    named_by_folder = path.name.endswith(WEIGHT_SUFFIXES) and step_of(path.name) is None
    return path.parent.name if named_by_folder else path.name


def _from_hub(repository: str, pattern: re.Pattern[str] | None) -> Suite:
    try:
        names = list_hub_revisions(repository)
    except CheckpointError as error:
        raise ValueError(
            f"{repository} is no local path, and its revisions cannot be listed at the hub: {error}"
        ) from error
    return _suite(repository, "hub", [(name, f"{repository}@{name}") for name in names], pattern)


def _suite(name: str, kind: Kind, places: list[tuple[str, str]], pattern: re.Pattern[str] | None) -> Suite:
    found = [(label, place, step_of(label, pattern=pattern)) for label, place in places]
    _one_pattern(name, [(label, fits[1]) for label, _, fits in found if fits is not None])
    unnamed = [label for label, _, fits in found if fits is None]
    entries = sorted((fits[0], place) for _, place, fits in found if fits is not None)
    if not entries or (kind == "list" and unnamed):
        raise ValueError(f"{name}: {_nothing_found(unnamed, pattern)}")
    _no_step_twice(name, entries)
    return Suite(name, tuple(CheckpointRef(step, place) for step, place in entries), kind=kind)


def _nothing_found(unnamed: list[str], pattern: re.Pattern[str] | None) -> str:
    wanted = ", ".join(PATTERNS) if pattern is None else repr(pattern.pattern)
    shown = f"found {', '.join(unnamed[:5])}" + (" ..." if len(unnamed) > 5 else "") if unnamed else "it is empty"
    return f"no step can be read from these names ({wanted}): {shown}. {_HINT}"


def _one_pattern(name: str, found: list[tuple[str, str]]) -> None:
    samples: dict[str, list[str]] = defaultdict(list)
    for label, fits in found:
        samples[fits].append(label)
    if len(samples) > 1:
        shown = "; ".join(f"{fits}: {', '.join(names[:3])} ({len(names)})" for fits, names in samples.items())
        raise ValueError(f"{name} mixes names of several patterns, perhaps of several runs: {shown}. {_HINT}")


def _no_step_twice(name: str, entries: list[tuple[int, str]]) -> None:
    places = defaultdict(list)
    for step, place in entries:
        places[step].append(place)
    twice = [f"step {step}: {', '.join(found)}" for step, found in places.items() if len(found) > 1]
    if twice:
        more = f" (and {len(twice) - 3} more)" if len(twice) > 3 else ""
        raise ValueError(f"{name} has two checkpoints of one step: {'; '.join(twice[:3])}{more}. {_HINT}")


def _selected(suite: Suite, steps: str | Iterable[int]) -> Suite:
    wanted = parse_steps(steps, available=suite.steps)
    asked = set(wanted)
    entries = tuple(entry for entry in suite.entries if entry.step in asked)
    if not entries:
        raise ValueError(
            f"{suite.name} has none of the steps asked for ({shortened(wanted)}); it has {shortened(suite.steps)}."
        )
    return Suite(suite.name, entries, kind=suite.kind, wanted=wanted)
