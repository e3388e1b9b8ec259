"""What headers alone say about a checkpoint suite: steps that are missing, repeated, known bad or of another shape."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Container, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from trainhooks.checkpoints.base import Checkpoint, CheckpointError
from trainhooks.checkpoints.fetch_ahead import fetch_head
from trainhooks.checkpoints.formats.registry import located
from trainhooks.checkpoints.head_key import head_key
from trainhooks.checkpoints.sources.hub import list_hub_folder
from trainhooks.checkpoints.sources.local_folder import LocalFolder
from trainhooks.checkpoints.steps import PYTHIA_GRID, missing_steps
from trainhooks.checkpoints.suite import CheckpointRef, Suite
from trainhooks.core.formatting import shortened

HEAD = "head"
PYTHIA = "EleutherAI/pythia-[0-9]*"

Kind = Literal[
    "missing", "no weights", "unreadable", "incomplete", "known bad", "vocabulary", "shape", "dtype", "identical",
    "not finite", "discontinuity", "unrelated", "order",
]  # fmt: skip


@dataclass(frozen=True)
class SuiteFinding:
    """One thing that is wrong: its kind, the steps it concerns, a sentence, and which of the steps are `broken`.

    A step is broken where its numbers would be wrong or missing; the others are named for context. `doubtful` findings
    put in doubt that the rest is one run in this order: no analysis goes on without being told to.
    """

    kind: Kind
    steps: tuple[int, ...]
    message: str
    broken: tuple[int, ...] = ()
    doubtful: bool = False


@dataclass(frozen=True)
class Seen:
    """What a checkpoint's headers say: the wanted keys, their shapes and dtypes, and the identity of each; `taken` says
    which tensor is the output embedding and why, where that was wanted; `absent` are files that an index names and that
    are not there, none of which holds a wanted tensor."""

    keys: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    identity: tuple[str, ...]
    taken: str = ""
    absent: tuple[str, ...] = ()


def look(
    checkpoint: Checkpoint, *, params: str, head: str | None = None, full: bool, known: Container[str] = ()
) -> Seen:
    """What a checkpoint says of the tensors `params` names. Raises CheckpointError where it has none such.

    An output embedding that will be read may come with its header; not one of an identity that is `known`.
    """
    if params == HEAD:
        fetch_head(checkpoint, key=head, known=known)
    found = head_key(checkpoint, key=head) if params == HEAD else None
    keys = (found.key,) if found else _wanted_keys(checkpoint, params)
    entries = [checkpoint.tensors[key] for key in keys]
    if lost := [entry for entry in entries if entry.absent]:
        raise CheckpointError(f"{checkpoint.name}: {lost[0].key} lies in {lost[0].file}, which is not there. Fetch it.")
    return Seen(
        keys=keys,
        shapes=tuple(tuple(entry.shape) for entry in entries),
        dtypes=tuple(entry.dtype for entry in entries),
        identity=tuple(checkpoint.identity(key, full=full) for key in keys),
        taken=found.told if found else "",
        absent=tuple(sorted({entry.file for entry in checkpoint.tensors.values() if entry.absent})),
    )


def _wanted_keys(checkpoint: Checkpoint, params: str) -> tuple[str, ...]:
    keys = tuple(sorted(key for key in checkpoint.tensors if fnmatchcase(key, params)))
    if not keys:
        some = ", ".join(sorted(checkpoint.tensors)[:5]) or "nothing"
        raise CheckpointError(f"{checkpoint.name}: no tensor fits {params!r}; it holds {some} ...")
    return keys


def failed(entry: CheckpointRef, error: Exception, *, kind: Kind = "unreadable") -> SuiteFinding:
    """A checkpoint that cannot be read, in one line; its place is not repeated, so that what is alike reads alike."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    told = lines[0].removeprefix(entry.location).lstrip(":/ ") or lines[0]
    return SuiteFinding(kind, (entry.step,), f"step {entry.step}: {told}", broken=(entry.step,))


def holds_weights(suite: Suite, entry: CheckpointRef) -> bool:
    """Whether there is a file of weights at all where a checkpoint could not be opened; True where nobody can say."""
    try:
        if suite.kind == "hub":
            repository, _, revision = entry.location.rpartition("@")
            folder: Any = list_hub_folder(repository, revision=revision)
        else:
            folder = Path(entry.location)
        if isinstance(folder, Path):
            if not folder.is_dir():
                return True
            folder = LocalFolder.list(folder)
        return located(folder) is not None
    except (CheckpointError, OSError):
        return True


def missing(suite: Suite) -> list[SuiteFinding]:
    """The steps that were asked for, or that the suite's grid or spacing has, and that are not there."""
    wanted = suite.wanted
    if wanted is None and suite.kind == "hub" and fnmatchcase(suite.name, PYTHIA) and not suite.name.endswith("-v0"):
        wanted = PYTHIA_GRID
    lacking = missing_steps(suite.steps) if wanted is None else tuple(sorted(set(wanted) - set(suite.steps)))
    why = "the suite's own spacing has them" if wanted is None else "they were expected"
    return [SuiteFinding("missing", lacking, f"steps {shortened(lacking)} are not there; {why}")] if lacking else []


def incomplete(seen: dict[int, Seen]) -> list[SuiteFinding]:
    """Checkpoints that lack files without any of the wanted tensors: a note, none is broken by it."""
    return [
        SuiteFinding(
            "incomplete", (step,), f"step {step}: {_listed(one.absent)} not there; no wanted tensor lies there"
        )
        for step, one in seen.items()
        if one.absent
    ]


def _listed(files: Sequence[str]) -> str:
    more = f" and {len(files) - 3} more files" if len(files) > 3 else ""
    return f"{', '.join(files[:3])}{more} {'is' if len(files) == 1 else 'are'}"


def layouts(seen: dict[int, Seen], *, params: str) -> list[SuiteFinding]:
    """Shapes and dtypes that differ from the commonest; in a tie that of the latest step counts as usual."""
    findings = []
    shapes = {step: one.shapes if params == HEAD else (one.keys, one.shapes) for step, one in seen.items()}
    for step, usual in _unusual(shapes):
        vocabulary = params == HEAD and seen[step].shapes[0][:1] != seen[usual].shapes[0][:1]
        kind: Kind = "vocabulary" if vocabulary else "shape"
        what = f"step {step} has {_shown(seen[step], seen[usual])}, step {usual} has {_shown(seen[usual], seen[step])}"
        findings.append(SuiteFinding(kind, (step,), what, broken=(step,)))
    by_dtype: dict[tuple[str, ...], list[int]] = defaultdict(list)
    # by kind of dtype, not tensor by tensor: where other tensors are there, that is said above
    for step, _ in _unusual({step: tuple(sorted(set(one.dtypes))) for step, one in seen.items()}):
        by_dtype[tuple(sorted(set(seen[step].dtypes)))].append(step)
    for dtypes, steps in by_dtype.items():
        message = f"steps {shortened(steps)} are stored as {', '.join(dtypes)}, the others are not"
        findings.append(SuiteFinding("dtype", tuple(steps), message))
    return findings


def _unusual(values: dict[int, Any]) -> list[tuple[int, int]]:
    """The steps whose value is not the commonest, each with the latest step that has the commonest."""
    counts = Counter(values.values())
    last = {value: step for step, value in values.items()}
    usual = max(counts, key=lambda value: (counts[value], last[value]), default=None)
    return [(step, last[usual]) for step, value in values.items() if value != usual]


def _shown(one: Seen, other: Seen) -> str:
    theirs = set(zip(other.keys, other.shapes, strict=True))
    own = [(key, shape) for key, shape in zip(one.keys, one.shapes, strict=True) if (key, shape) not in theirs]
    text = ", ".join(f"{key} {'x'.join(map(str, shape))}" for key, shape in own[:3])
    return text + (f" and {len(own) - 3} more" if len(own) > 3 else "") if own else "no others"


def same(seen: dict[int, Seen]) -> list[list[int]]:
    """Groups of two and more steps whose tensors have the same identity."""
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for step, one in seen.items():
        groups[one.identity].append(step)
    return [steps for steps in groups.values() if len(steps) > 1]


def identical(suite: Suite, seen: dict[int, Seen], *, wrong: set[int]) -> list[SuiteFinding]:
    """Steps of equal content; which of those that are not known to be `wrong` stays is said in `audit_suite`."""
    place = {step: number for number, step in enumerate(seen)}
    findings = []
    for steps in same(seen):
        in_a_row = place[steps[-1]] - place[steps[0]] == len(steps) - 1
        left = [step for step in steps if step not in wrong]
        stays = left[0] if in_a_row and left else suite.steps[-1]
        findings.append(
            SuiteFinding(
                "identical",
                tuple(steps),
                f"steps {shortened(steps)} have the same content",
                broken=tuple(step for step in left if step != stays),
                # at the very beginning nothing has moved yet; elsewhere some label is wrong, unless a report says which
                doubtful=bool(left) and not (in_a_row and place[steps[0]] == 0),
            )
        )
    return findings
