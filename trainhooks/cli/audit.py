"""Commands on checkpoint suites."""

from __future__ import annotations

import json as json_format
import sys
from typing import Literal

from trainhooks.cli.base import FOUND, Flag, command
from trainhooks.core.printable import say


@command
def audit(
    suite: str,
    *,
    steps: str | None = None,
    revision_pattern: str | None = None,
    by: Literal["step", "tokens"] | None = None,
    stage: str | None = None,
    seed: str | None = None,
    params: str = "head",
    head: str | None = None,
    transposed: Flag = False,
    full: Flag = False,
    json: Flag = False,
) -> None:
    """Look for what is wrong with a checkpoint suite: exit code 0 where nothing is, 2 where something is.

    Parameters
    ----------
    suite
        A folder of checkpoints, a store, a hub repository (owner/name, hf://...), or a text file of places.
    steps
        Which ones: 0,1,2,4 or 0:143000:1000 (last included), log, pythia, or several with commas.
    revision_pattern
        A regular expression for the names of checkpoints or revisions, with one group: the step.
    by
        What orders the checkpoints: step, or the tokens that their names tell.
    stage
        One stage of a training of several (base: names without one), or several with commas, in their order.
    seed
        One run of several seeds; all for each of them.
    head
        The output embedding's key, where it cannot be found.
    transposed
        That key is stored as [dim, vocab]; known names (unembed.W_U, kernel) need no telling.
    params
        head for the output embedding, or a glob over tensor names.
    full
        Hash every byte of the tensors, where the default takes their header, first and last MiB.
    json
        Print JSON instead of text.

    Examples
    --------
    trainhooks audit checkpoints/
    trainhooks audit EleutherAI/pythia-14m --steps 0,1,2,4 --json
    trainhooks audit checkpoints/ --full
    """
    from trainhooks.checkpoints.audit.audit import audit_suite
    from trainhooks.checkpoints.suite import list_runs

    if head is not None and params != "head":
        raise ValueError("--head names the output embedding, and --params other tensors: leave one of them out.")
    runs = list_runs(suite, revision_pattern=revision_pattern, steps=steps, by=by, stage=stage, seed=seed)
    if transposed:
        runs = tuple(run.with_transposed(head) for run in runs)
    results = [audit_suite(run, params=params, head=head, full=full) for run in runs]
    told = [result.to_dict() for result in results]
    if json:
        say(json_format.dumps(told if seed == "all" else told[0], indent=2))
    else:
        say("\n".join(result.render() for result in results), end="")
    if not all(result.clean for result in results):
        sys.exit(FOUND)
