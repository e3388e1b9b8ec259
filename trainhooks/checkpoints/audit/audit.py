"""Audit a checkpoint suite before it is analysed: what is missing, repeated, broken or out of line."""

from __future__ import annotations

import dataclasses
import math
import os
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any, get_args

import torch
from torch import Tensor

from trainhooks.checkpoints.audit.continuity import Pair, compare, jumps, spikes, unrelated
from trainhooks.checkpoints.audit.header_checks import (
    HEAD,
    Kind,
    Seen,
    SuiteFinding,
    failed,
    holds_weights,
    identical,
    incomplete,
    layouts,
    look,
    missing,
    same,
)
from trainhooks.checkpoints.audit.order import disordered
from trainhooks.checkpoints.audit.reports import known
from trainhooks.checkpoints.base import Checkpoint
from trainhooks.checkpoints.places import is_remote
from trainhooks.checkpoints.suite import CheckpointRef, Suite
from trainhooks.core.formatting import shortened
from trainhooks.core.html import card
from trainhooks.core.printable import page, shown
from trainhooks.numerics.norms import all_finite
from trainhooks.numerics.sketch import DEFAULT_SIZE, sketch_parameter


@dataclass(frozen=True)
class Audit:
    """What an audit found, and the way between neighbouring checkpoints (`pairs`, by the two steps).

    `steps` are the suite's; `tensors` the keys that were read, `taken` which was taken for the output embedding and
    why, where that was asked for; `findings` come in the order of `Kind`; `notes` say how names were read.
    """

    name: str
    steps: tuple[int, ...]
    tensors: tuple[str, ...]
    findings: tuple[SuiteFinding, ...]
    pairs: dict[tuple[int, int], Pair] = field(default_factory=dict)
    taken: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        found = "nothing found" if self.clean else f"{len(self.findings)} findings"
        return f"<Audit of {shown(self.name)}: {len(self.steps)} checkpoints, {found}>"

    def _repr_html_(self) -> str:
        rows = [
            ("checkpoints", f"{len(self.steps)}, steps {shortened(self.steps)}"),
            ("left out", str(len(self.broken))),
        ]
        return card(f"Audit of {self.name}", rows, lines=_grouped(self.findings) or ["Nothing was found."])

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    @property
    def doubts(self) -> tuple[SuiteFinding, ...]:
        """What puts in doubt that the rest is one run in this order."""
        return tuple(finding for finding in self.findings if finding.doubtful)

    @property
    def broken(self) -> dict[int, str]:
        """The steps to leave out of an analysis, ascending, each with its reasons."""
        reasons: dict[int, list[str]] = defaultdict(list)
        for finding in self.findings:
            for step in finding.broken:
                reasons[step].append(f"{finding.kind}: {finding.message}")
        return {step: "; ".join(reasons[step]) for step in sorted(reasons)}

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain dicts, lists, numbers and strings, ready for JSON; a NaN cosine becomes None."""
        pairs = [
            {"steps": list(steps), "distance": pair.distance,
             "cosine": None if math.isnan(pair.cosine) else pair.cosine}
            for steps, pair in self.pairs.items()
        ]  # fmt: skip
        return {
            "name": self.name,
            "clean": self.clean,
            "steps": list(self.steps),
            "tensors": list(self.tensors),
            "taken": list(self.taken),
            "notes": list(self.notes),
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "broken": {str(step): reason for step, reason in self.broken.items()},
            "pairs": pairs,
        }

    def render(self) -> str:
        """The audit as text, for a terminal: one line a finding, then what an analysis leaves out."""
        lines = [
            f"{self.name}: {len(self.steps)} checkpoints, steps {shortened(self.steps)}",
            f"read: {', '.join(self.taken or self.tensors) or 'nothing'}",
            *self.notes,
            *_grouped(self.findings),
        ]
        broken = list(self.broken)
        if broken:
            lines.append(f"An analysis leaves out: {shortened(broken)}")
        if self.doubts:
            lines.append("Whether the rest is one run is in doubt: an analysis stops here unless it is told to go on.")
        elif not broken:
            lines.append("Nothing has to be left out.")
        return page(lines)


def _grouped(findings: Sequence[SuiteFinding]) -> list[str]:
    """A line a finding; those that say the same of one step after another share one."""
    steps: dict[tuple[str, str], list[int]] = defaultdict(list)
    for finding in findings:
        said = finding.message
        if len(finding.steps) == 1:
            said = said.removeprefix(f"step {finding.steps[0]}: ")
        steps[finding.kind, said] += finding.steps if said != finding.message else ()
    return [f"- {kind}: {_where(at)}{said}" for (kind, said), at in steps.items()]


def _where(steps: Sequence[int]) -> str:
    if len(steps) > 1:
        return f"steps {shortened(steps)} ({len(steps)} of them): "
    return f"step {steps[0]}: " if steps else ""


def audit_suite(
    suite: Suite,
    *,
    params: str = HEAD,
    head: str | None = None,
    full: bool = False,
    opener: Callable[[CheckpointRef], Checkpoint] | None = None,
) -> Audit:
    """Audit a suite; a checkpoint that cannot be read is a finding, and the audit goes on.

    Once over all headers and identities (`full` hashes every byte; else a hub's own hashes, or header plus first
    and last MiB), then over the tensors that `params` names: the output embedding (`head`), or those whose keys fit
    a glob. `head` is the output embedding's key where it cannot be found. At most three checkpoints' tensors are in
    memory. `opener` opens an entry, by default `suite.open`.

    Identical content: where the steps are neighbours nothing had moved, so the first stays and the others are broken;
    else the labels are wrong, and only the suite's last step stays. A state out of line (`spikes`) is broken. After
    a jump either side may be right: it is reported, none is broken; where the sides have nothing in common
    (`unrelated`), what is not in the side with most checkpoints is broken.
    """
    opener = suite.open if opener is None else opener
    if suite.kind == "hub":  # an opener of the caller's: opened once, what is kept is headers
        opener = lru_cache(maxsize=None)(opener)
    seen, findings = _read_headers(suite, params=params, head=head, full=full, opener=opener)
    names = tuple(dict.fromkeys(key for one in seen.values() for key in one.keys))
    reports, said = known(suite, names, seen)
    findings += missing(suite) + incomplete(seen) + reports + layouts(seen, params=params)
    if not full:
        findings += _confirm(suite, seen, opener)
    findings += identical(suite, seen, wrong={step for report in reports for step in report.broken})
    out = {step for finding in findings for step in finding.broken}
    sound = [entry for entry in suite.entries if entry.step in seen and entry.step not in out]
    walk = _walk(sound, seen, opener)
    findings += walk.findings + _out_of_line(walk)
    pairs = {(a, b): pair for (a, b, pair) in zip(walk.steps, walk.steps[1:], walk.near, strict=False)}
    taken = tuple(dict.fromkeys(one.taken for one in seen.values() if one.taken))
    return Audit(
        suite.name, suite.steps, names, tuple(sorted(findings, key=_order)), pairs, taken, (*suite.told, *said)
    )


def _order(finding: SuiteFinding) -> tuple[int, tuple[int, ...]]:
    return get_args(Kind).index(finding.kind), finding.steps


def _read_headers(
    suite: Suite, *, params: str, head: str | None, full: bool, opener: Callable[[CheckpointRef], Checkpoint]
) -> tuple[dict[int, Seen], list[SuiteFinding]]:
    seen: dict[int, Seen] = {}
    findings = []
    for entry in suite.entries:
        try:
            checkpoint = opener(entry)
            known = {identity for one in seen.values() for identity in one.identity}
            seen[entry.step] = look(checkpoint, params=params, head=head, full=full, known=known)
        except (ValueError, OSError) as error:
            kind: Kind = "unreadable" if holds_weights(suite, entry) else "no weights"
            findings.append(failed(entry, error, kind=kind))
    return seen, findings


def _confirm(suite: Suite, seen: dict[int, Seen], opener: Callable[[CheckpointRef], Checkpoint]) -> list[SuiteFinding]:
    """Hash in full what looks the same and is not at a hub; `seen` learns it, or loses what cannot be read."""
    findings = []
    alike = {step for steps in same(seen) for step in steps}
    for entry in suite.entries:
        # a hub's own hash is already one of every byte, and another would cost a download
        at_hub = not os.path.exists(entry.location) and not is_remote(entry.location)
        if entry.step not in alike or at_hub:
            continue
        one = seen[entry.step]
        try:
            checkpoint = opener(entry)
            identity = tuple(checkpoint.identity(key, full=True) for key in one.keys)
            seen[entry.step] = dataclasses.replace(one, identity=identity)
        except (ValueError, OSError) as error:
            del seen[entry.step]
            findings.append(failed(entry, error))
    return findings


@dataclass
class _Walk:
    """What going through the sound checkpoints gave: distances to the next state, and to the one after it, and
    sketches, from which the distance between any two states follows within some percent."""

    steps: list[int] = field(default_factory=list)
    near: list[Pair] = field(default_factory=list)
    skip: list[Pair] = field(default_factory=list)
    sketches: list[Tensor] = field(default_factory=list)
    findings: list[SuiteFinding] = field(default_factory=list)


def _walk(
    entries: Sequence[CheckpointRef], seen: dict[int, Seen], opener: Callable[[CheckpointRef], Checkpoint]
) -> _Walk:
    walk = _Walk()
    states: deque[list[Tensor]] = deque(maxlen=2)
    for entry in entries:
        try:
            checkpoint = opener(entry)
            state = [checkpoint.read(key) for key in seen[entry.step].keys]
        except (ValueError, OSError) as error:
            walk.findings.append(failed(entry, error))
            continue
        if bad := [key for key, tensor in zip(seen[entry.step].keys, state, strict=True) if not all_finite(tensor)]:
            message = f"step {entry.step}: NaN or infinity in {', '.join(bad[:3])}"
            walk.findings.append(SuiteFinding("not finite", (entry.step,), message, broken=(entry.step,)))
            continue
        if states:
            pair = compare(states[-1], state)
            if pair.distance == 0:  # files that differ elsewhere, or another format
                message = f"steps {walk.steps[-1]} and {entry.step} have equal tensors in files that differ"
                both = (walk.steps[-1], entry.step)
                begins = len(walk.steps) == 1  # nothing has moved yet
                walk.findings.append(
                    SuiteFinding("identical", both, message, broken=(entry.step,), doubtful=not begins)
                )
                continue
            walk.near.append(pair)
        walk.steps.append(entry.step)
        walk.sketches.append(_sketch(state))
        if len(states) == 2:
            walk.skip.append(compare(states[0], state))
        states.append(state)
    return walk


def _sketch(state: Sequence[Tensor]) -> Tensor:
    parts = [sketch_parameter(tensor, name=str(number), size=DEFAULT_SIZE) for number, tensor in enumerate(state)]
    return torch.stack(parts).sum(0)


def _out_of_line(walk: _Walk) -> list[SuiteFinding]:
    alone = set(spikes([pair.distance for pair in walk.near], [pair.distance for pair in walk.skip]))
    findings = [_spike(walk, i) for i in sorted(alone)]
    kept = [i for i in range(len(walk.steps)) if i not in alone]
    # spikes are never neighbours, so every way between kept states was measured
    pairs = [walk.near[i] if j == i + 1 else walk.skip[i] for i, j in pairwise(kept)]
    steps = [walk.steps[i] for i in kept]
    apart = unrelated(steps, [pair.cosine for pair in pairs])
    findings += _unrelated(steps, pairs, apart)
    breaks = sorted(set(jumps(steps, [pair.distance for pair in pairs])) - set(apart))
    if not apart and len(breaks) <= 1 and (order := disordered(steps, [walk.sketches[i] for i in kept])):
        return findings + order  # which says more than that the series breaks there
    for i in breaks:
        message = (
            f"from step {steps[i]} to {steps[i + 1]} the tensors move {pairs[i].distance:.4g}, out of line with the "
            "steps around"
        )
        findings.append(SuiteFinding("discontinuity", (steps[i], steps[i + 1]), message, doubtful=True))
    return findings


def _spike(walk: _Walk, i: int) -> SuiteFinding:
    before, step, after = walk.steps[i - 1 : i + 2]
    message = (
        f"step {step} is {walk.near[i - 1].distance:.4g} from step {before} and {walk.near[i].distance:.4g} from step "
        f"{after}, which are {walk.skip[i - 1].distance:.4g} apart"
    )
    return SuiteFinding("discontinuity", (step,), message, broken=(step,), doubtful=True)


def _unrelated(steps: Sequence[int], pairs: Sequence[Pair], apart: Sequence[int]) -> list[SuiteFinding]:
    """A finding for each place where a series breaks off; the minority is broken where one side is the majority."""
    cuts = [0, *(i + 1 for i in apart), len(steps)]
    parts = [steps[a:b] for a, b in pairwise(cuts)]
    main = next((part for part in parts if 2 * len(part) > len(steps)), None)
    findings = []
    for number, i in enumerate(apart):
        sides = [part for part in parts[number : number + 2] if main is not None and part is not main]
        message = (
            f"steps {steps[i]} and {steps[i + 1]} have nothing in common (cosine {pairs[i].cosine:.2f}): two runs, "
            "or another initialization"
        )
        broken = tuple(step for side in sides for step in side)
        findings.append(SuiteFinding("unrelated", (steps[i], steps[i + 1]), message, broken=broken, doubtful=True))
    return findings
