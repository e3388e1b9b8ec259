"""The public reports that concern a suite, whichever way its repositories are named, held against what is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trainhooks.checkpoints.audit.header_checks import Seen, SuiteFinding
from trainhooks.checkpoints.audit.known_reports import KnownBad, known_bad, reported
from trainhooks.checkpoints.places import repository_of
from trainhooks.checkpoints.suite import Suite
from trainhooks.core.formatting import shortened

REPAIRED = "it is said to be repaired"


def known(suite: Suite, names: Sequence[str], seen: Mapping[int, Seen]) -> tuple[list[SuiteFinding], list[str]]:
    """Findings of the reports that concern the tensors `names`, and notes of those that name no wrong step.

    Where a report says what the contents would show, they are looked at: a step that does not show it stays, and that
    is said; a report that is said to be repaired and still shows is a finding.
    """
    findings: list[SuiteFinding] = []
    notes: list[str] = []
    for repository, own in _repositories(suite).items():
        steps = tuple(own)
        for report, touched in known_bad(repository, steps=steps, tensors=names):
            findings.append(_finding(report, [own[step] for step in touched], suite, seen, own))
        for report, touched in reported(repository, steps=steps):
            finding, note = _said(report, [own[step] for step in touched], suite, seen, own)
            findings += [] if finding is None else [finding]
            notes += [note] if note else []
    return findings, notes


def _repositories(suite: Suite) -> dict[str, dict[int, int]]:
    """The hub repositories that a suite's checkpoints are of, each with its own steps and where they stand here."""
    found: dict[str, dict[int, int]] = {}
    for entry in suite.entries:
        place = repository_of(entry.location)
        repository = place.repo if place is not None else suite.name if suite.kind == "hub" else None
        if repository is not None:
            found.setdefault(repository, {})[entry.step if entry.own_step is None else entry.own_step] = entry.step
    return found


def _finding(
    report: KnownBad, steps: list[int], suite: Suite, seen: Mapping[int, Seen], own: Mapping[int, int]
) -> SuiteFinding:
    contradicted = _not_shown(report, steps, suite, seen, own)
    message = f"steps {shortened(steps)}: {report.note} ({report.source})"
    if contradicted:
        message += f"; here the contents of {shortened(contradicted)} do not show it, so they stay: repaired since?"
    left_out = tuple(step for step in steps if step not in contradicted)
    return SuiteFinding("known bad", tuple(steps), message, left_out)


def _said(
    report: KnownBad, steps: list[int], suite: Suite, seen: Mapping[int, Seen], own: Mapping[int, int]
) -> tuple[SuiteFinding | None, str]:
    """A report that leaves nothing out by itself: a finding where the contents show it, else a note."""
    where = f"steps {shortened(steps)}: " if steps else ""
    said = f"{where}{report.note} ({report.source}{', ' + REPAIRED if report.repaired else ''})"
    contradicted = _not_shown(report, steps, suite, seen, own)
    shown = [step for step in steps if step in seen and step not in contradicted]
    if report.shows == "final" and shown and suite.steps[-1] in seen and suite.steps[-1] not in shown:
        return SuiteFinding("known bad", tuple(shown), f"{said}; the contents still show it", tuple(shown)), ""
    more = f"; here the contents of {shortened(contradicted)} do not show it" if contradicted else ""
    return None, f"reported: {said}{more}"


def _not_shown(
    report: KnownBad, steps: Sequence[int], suite: Suite, seen: Mapping[int, Seen], own: Mapping[int, int]
) -> list[int]:
    """Of the steps those whose contents contradict the report."""
    if report.shows == "none":
        return [step for step in steps if step in seen]
    if report.shows == "final":
        last = suite.steps[-1]
        if last not in seen or last in steps:
            return []
        return [step for step in steps if step in seen and seen[step].identity != seen[last].identity]
    if report.shows == "alike":
        group = {*steps, *(own[step] for step in report.like if step in own)}
        if not all(step in seen for step in group) or len(group) < 2:
            return []
        identities = [seen[step].identity for step in group]
        return [step for step in steps if identities.count(seen[step].identity) == 1]
    return []
