"""Names on one axis of steps or tokens: which it is, and stages laid one after the other on it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise

from trainhooks.checkpoints.named import AmbiguousNames, Axis, CheckpointRef, Named, listed, pattern_of, sample
from trainhooks.checkpoints.names import BASE, IN_A_MANIFEST
from trainhooks.checkpoints.stage_order import is_numbered

ENOUGH_GAPS = 2
_FAR = 4
KINDS: tuple[Axis, ...] = ("step", "tokens", "chunk")


def axis_of(name: str, found: Sequence[Named], *, by: str | None) -> Axis:
    """What the series goes by: as asked, or steps, tokens or chunks, whichever all names have."""
    lacking: dict[str, list[str]] = {axis: [one.name for one in found if _of(one, axis) is None] for axis in KINDS}
    if by is not None:
        if lacking[by]:
            raise ValueError(
                f"{name} cannot go by {by}: {len(lacking[by])} names tell none ({listed(lacking[by])}). Leave them "
                "out (--steps, --stage), or write a manifest that has them (audit --manifest-out)."
            )
        return "tokens" if by == "tokens" else "step"
    for axis in KINDS:
        if not lacking[axis]:
            return axis
    some = [f"{axis} in {len(found) - len(lacking[axis])}: {listed(_having(found, axis))}" for axis in KINDS]
    if found[0].parsed.form == IN_A_MANIFEST:
        what = "Give all rows a step, or all of them tokens."
    else:
        expression = f"--revision-pattern '{pattern_of(found[0])}'"
        what = f"Pick some by a regular expression ({expression}), or write a manifest."
    raise AmbiguousNames(
        f"{name}: some names tell steps and others tokens, and none is in all {len(found)} of them "
        f"({'; '.join(some)}). {what}"
    )


def _having(found: Sequence[Named], axis: Axis) -> list[str]:
    return [one.name for one in found if _of(one, axis) is not None]


def laid_on(
    axis: Axis, stages: Sequence[Sequence[Named]], *, picked: bool
) -> tuple[list[CheckpointRef], list[str], list[str]]:
    """Entries on one axis: a stage that counts anew goes on from the last of the stage before.

    The first of such a stage at 0 is the last of the one before, and is left out. A branch that kept the trunk's count
    is asked for; where stages were `picked` it follows the trunk up to where it leaves it. Beside the entries come
    notes, and the names that were left out.
    """
    laid = _Laid(axis)
    for number, names in enumerate(stages):
        if number and _branches_off(names, stages[number - 1], axis, end=laid.ends[axis]):
            laid.branch(names, of=_label(stages[number - 1]), picked=picked)
        else:
            laid.follow(names)
    return laid.entries, laid.notes, laid.left


class _Laid:
    """Stages that have been laid on an axis: `ends` are the last counts, by kind."""

    def __init__(self, axis: Axis) -> None:
        self._axis = axis
        self.entries: list[CheckpointRef] = []
        self.notes: list[str] = []
        self.left: list[str] = []
        self.ends: dict[Axis, int] = dict.fromkeys(KINDS, -1)
        self._shifted = False

    def follow(self, names: Sequence[Named]) -> None:
        """A stage after all that is there."""
        starts = {kind: _anew(names, kind, self.ends[kind]) for kind in KINDS}
        start = starts[self._axis]
        if start:
            self._shifted = True
            label = names[0].parsed.stage or BASE
            axis = self._axis
            self.notes.append(
                f"stage {label} counts anew: its {axis} n stands at {start} + n, after the last before it."
            )
        self.left += [one.name for one in names if start and _of(one, self._axis) == 0]
        self._add([one for one in names if not start or _of(one, self._axis) != 0], starts)
        for kind in KINDS:
            own = [_of(one, kind) for one in names]
            if all(value is not None for value in own):
                self.ends[kind] = starts[kind] + max(value for value in own if value is not None)

    def branch(self, names: Sequence[Named], *, of: str, picked: bool) -> None:
        """A stage that left the trunk `of` before its end and kept its count. Raises AmbiguousNames if not `picked`."""
        label, axis = _label(names), self._axis
        if not picked or self._shifted:
            raise AmbiguousNames(
                f"stage {label} ({sample(names)}) neither counts anew nor goes on from {axis} {self.ends[axis]}: it "
                f"seems to branch off {of} before its end. Take {of} up to there and then the branch (--stage "
                f"{of},{label}), one of them alone (--stage {label}), or write a manifest with the steps you mean."
            )
        first = _counts(names, axis)[0]
        over = [entry for entry in self.entries if entry.step >= first]
        self.entries = [entry for entry in self.entries if entry.step < first]
        self.left += [entry.name for entry in over]
        self.notes.append(
            f"stage {label} kept the count of {of} and is taken for a branch of it from {axis} {first} on: "
            f"{len(over)} checkpoints of {of} from there on are left out."
        )
        self._add(names, dict.fromkeys(KINDS, 0))
        self.ends = {kind: max(_counts(names, kind), default=-1) for kind in KINDS}

    def _add(self, names: Sequence[Named], starts: Mapping[Axis, int]) -> None:
        self.entries += [_entry(one, self._axis, starts) for one in names]


def _anew(names: Sequence[Named], kind: Axis, end: int) -> int:
    """Where a stage that counts anew begins; 0 where it goes on counting, or where not all names tell."""
    own = [_of(one, kind) for one in names]
    first = min((value for value in own if value is not None), default=end)
    return end if None not in own and end > 0 and first <= end else 0


def _branches_off(names: Sequence[Named], before: Sequence[Named], axis: Axis, *, end: int) -> bool:
    """Whether a stage kept the trunk's count from somewhere before its end: its own begin far from 0.

    Far is more than two of the ways between checkpoints, its own or the trunk's. A stage with a number (`stage2`) may
    have a few late checkpoints and count anew: doubted is one where many lie close together. So is one of a manifest,
    where stages follow each other.
    """
    own, trunk = _counts(names, axis), _counts(before, axis)
    if not own or own[0] > end:
        return False
    if is_numbered(names[0].parsed.stage) or names[0].parsed.form == IN_A_MANIFEST:
        return len(own) > 2 and own[0] > _FAR * (own[-1] - own[0])
    gaps = [b - a for a, b in pairwise(own)], [b - a for a, b in pairwise([0, *trunk]) if b > a]
    return own[0] > ENOUGH_GAPS * max(min(found, default=0) for found in gaps)


def _label(names: Sequence[Named]) -> str:
    return names[0].parsed.stage or BASE


def _counts(names: Sequence[Named], axis: Axis) -> list[int]:
    """What the names tell of the axis, ascending."""
    return sorted(value for one in names if (value := _of(one, axis)) is not None)


def _of(one: Named, kind: Axis) -> int | None:
    value: int | None = getattr(one.parsed, kind)
    return value


def _entry(one: Named, axis: Axis, starts: Mapping[Axis, int]) -> CheckpointRef:
    parsed = one.parsed
    own = _of(one, axis)
    assert own is not None
    step = parsed.step if parsed.step is not None else parsed.chunk
    tokens = None if parsed.tokens is None else starts["tokens"] + parsed.tokens
    return CheckpointRef(
        starts[axis] + own, one.place, one.name, own_step=step, tokens=tokens, stage=parsed.stage, seed=parsed.seed
    )


def no_step_twice(name: str, entries: Sequence[CheckpointRef], axis: Axis) -> None:
    """Raises ValueError where two checkpoints have one step."""
    places = defaultdict(list)
    for entry in entries:
        places[entry.step].append(entry)
    twice = [(step, found) for step, found in places.items() if len(found) > 1]
    if not twice:
        return
    shown = "; ".join(f"{axis} {step}: {', '.join(one.location for one in found)}" for step, found in twice[:3])
    more = f" (and {len(twice) - 3} more)" if len(twice) > 3 else ""
    what = "two checkpoints of one step" if axis == "step" else f"two checkpoints of the same {axis}"
    raise ValueError(
        f"{name} has {what}: {shown}{more}. Pick one of each by a regular expression (--revision-pattern "
        f"'{re.escape(twice[0][1][0].name or str(twice[0][0]))}' with a group for the step)"
        + (", or go by step, where the names tell one (--by step)." if axis == "tokens" else ".")
    )
