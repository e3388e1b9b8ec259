"""Commands on checkpoint suites."""

from __future__ import annotations

import json as json_format
import sys

from trainhooks.cli.base import Flag, command
from trainhooks.core.printable import say

PROBLEMS = 2


@command
def audit(
    suite: str,
    *,
    steps: str | None = None,
    revision_pattern: str | None = None,
    params: str = "head",
    head: str | None = None,
    full: Flag = False,
    json: Flag = False,
) -> None:
    """Look for what is wrong with a checkpoint suite: exit code 0 where nothing is, 2 where something is.

    Parameters
    ----------
    suite
        A folder of checkpoints, a store, a hub repository (owner/name), or a text file of paths.
    steps
        Which ones: 0,1,2,4 or 0:143000:1000 (last included), log, pythia, or several with commas.
    revision_pattern
        A regular expression for the names of checkpoints or revisions, with one group: the step.
    head
        The output embedding's key, where it cannot be found.
    params
        head for the output embedding, or a glob over tensor names.
    full
        Hash every byte of the tensors, where the default takes their header, first and last MiB.
    json
        Print JSON instead of text.
    """
    from trainhooks.checkpoints.audit.audit import audit_suite
    from trainhooks.checkpoints.suite import list_suite

    listed = list_suite(suite, revision_pattern=revision_pattern, steps=steps)
    if head is not None and params != "head":
        raise ValueError("--head names the output embedding, and --params other tensors: leave one of them out.")
    result = audit_suite(listed, params=params, head=head, full=full)
    say(json_format.dumps(result.to_dict(), indent=2) if json else result.render(), end="\n" if json else "")
    if not result.clean:
        sys.exit(PROBLEMS)
