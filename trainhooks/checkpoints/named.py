"""A checkpoint's name beside its place, and one checkpoint of a series; how names are shown where a user must pick."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trainhooks.checkpoints.names import ParsedName

Axis = Literal["step", "tokens", "chunk"]


@dataclass(frozen=True)
class CheckpointRef:
    """One checkpoint of a suite: its `step` on the suite's axis, its `location` (a path, a URL, `repository@revision`).

    `own_step` is the step that its name gives, where the axis goes by tokens or counts on over stages; `tokens` seen
    so far, `stage` and `seed` as far as they are known. `name` is what it is called where it lies.
    """

    step: int
    location: str
    name: str = ""
    own_step: int | None = None
    tokens: int | None = None
    stage: str = ""
    seed: str = ""


@dataclass(frozen=True)
class Named:
    """A name that was read, with the place it names."""

    name: str
    place: str
    parsed: ParsedName


class AmbiguousNames(ValueError):
    """Names of which more than one series could be made; the text has the groups and an option for each. `seeds` are
    the runs that they hold, where that is what is to be picked; `found` is what was read, to be put in a manifest."""

    def __init__(self, text: str, *, seeds: Sequence[str] = ()) -> None:
        super().__init__(text)
        self.seeds = tuple(seeds)
        self.found: tuple[CheckpointRef, ...] = ()


def pattern_of(one: Named) -> str:
    """A regular expression for names like this one, whose group is the number that orders it."""
    start, end = one.parsed.span
    unit = re.search(r"[A-Za-z]*$", one.name[start:end])
    digits = r"[\d.]+" if "." in one.name[start:end] else r"\d+"
    group = f"({digits}{unit[0] if unit else ''})"
    return (
        re.sub(r"\d+", r"\\d+", re.escape(one.name[:start]))
        + group
        + re.sub(r"\d+", r"\\d+", re.escape(one.name[end:]))
    )


def sample(names: Sequence[Named]) -> str:
    """The first names, and how many there are."""
    return f"{', '.join(one.name for one in names[:3])} ({len(names)})"


def listed(names: Sequence[str], *, most: int = 5) -> str:
    """The first names, with dots where there are more."""
    return ", ".join(names[:most]) + (" ..." if len(names) > most else "")


def unread_note(unread: Sequence[str]) -> str:
    """What is said of names that are in no series; empty where there are none."""
    if not unread:
        return ""
    what = "1 name was" if len(unread) == 1 else f"{len(unread)} names were"
    return f"{what} not read as steps: {listed(unread, most=8)}"
