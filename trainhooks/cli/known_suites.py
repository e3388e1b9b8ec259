"""The command that lists the public suites known by name."""

from __future__ import annotations

import json as json_format
from typing import Any

from trainhooks.cli.base import Flag, command
from trainhooks.core.printable import page, say


@command
def suites(name: str | None = None, *, json: Flag = False) -> None:
    """List the public checkpoint suites known by name, and the command that analyses each.

    Parameters
    ----------
    name
        One of them, with all that is known of it.
    json
        Print JSON instead of text.

    Examples
    --------
    trainhooks suites
    trainhooks suites olmo2 --json
    """
    from trainhooks.checkpoints.known_suites import KNOWN_SUITES, preset_of

    wanted = KNOWN_SUITES if name is None else (preset_of(name),)
    told = [_told(one) for one in wanted]
    if json:
        say(json_format.dumps(told if name is None else told[0], indent=2))
    elif name is None:
        width = max(len(one["name"]) for one in told)
        say(page(f"{one['name']:<{width}}  {one['names']}" for one in told), end="")
        say("`trainhooks suites NAME` says more; `--preset NAME` of analyze and audit takes one.")
    else:
        say(page(_lines(told[0])), end="")


def _told(suite: Any) -> dict[str, Any]:
    """All that is known of a suite, ready for JSON."""
    return {
        "name": suite.name,
        "repositories": list(suite.ids),
        "names": suite.names,
        "orders_by": suite.unit,
        "sizes": list(suite.sizes),
        "stages": list(suite.picks or suite.stages),
        "seed": suite.seed,
        "vocabulary": suite.ids_used,
        "rows": list(suite.rows),
        "padding": sorted({rows - suite.ids_used for rows in suite.rows}) if suite.ids_used else [],
        "tokenizer": suite.tokenizer or None,
        "counts": suite.counts or None,
        "known_bad": [_report(report) for report in _reports(suite)],
        "note": suite.note or None,
        "command": suite.command,
    }


def _report(report: Any) -> dict[str, Any]:
    return {
        "repository": report.repository,
        "steps": list(report.steps),
        "note": report.note,
        "source": report.source,
        "repaired": report.repaired,
    }


def _reports(suite: Any) -> list[Any]:
    """The reports on the repositories of a suite."""
    from fnmatch import fnmatchcase

    from trainhooks.checkpoints.audit.known_reports import KNOWN_BAD, REPORTED

    def concerns(repository: str) -> bool:
        # two globs that meet: either holds the other's text as one of its own
        return any(fnmatchcase(repository, glob) or fnmatchcase(glob, repository) for glob in suite.ids)

    return [report for report in (*KNOWN_BAD, *REPORTED) if concerns(report.repository)]


def _lines(told: dict[str, Any]) -> list[str]:
    from trainhooks.core.formatting import shortened

    rows = ", ".join(map(str, told["rows"])) or "not known"
    lines = [
        f"{told['name']}: {', '.join(told['repositories']) or 'by a manifest'}",
        f"names: {told['names']} (in order of {told['orders_by']})",
        f"sizes: {', '.join(told['sizes']) or 'not known'}",
        f"vocabulary: {told['vocabulary'] or 'not known'} ids in {rows} rows",
        f"tokenizer: {told['tokenizer'] or 'not known'}",
        f"counts: {told['counts'] or 'none published that we know of: count the corpus (trainhooks count)'}",
    ]
    if told["stages"]:
        lines.append(f"stages: {', '.join(told['stages'])}")
    lines += [f"note: {told['note']}"] if told["note"] else []
    for report in told["known_bad"]:
        steps = f"steps {shortened(report['steps'])} of " if report["steps"] else ""
        repaired = ", said to be repaired" if report["repaired"] else ""
        lines.append(f"- {steps}{report['repository']}: {report['note']} ({report['source']}{repaired})")
    return [*lines, told["command"]]
