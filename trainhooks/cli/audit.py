"""Commands on checkpoint suites."""

from __future__ import annotations

import json as json_format
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trainhooks.cli.base import FOUND, Flag, command
from trainhooks.core.printable import say

if TYPE_CHECKING:
    from trainhooks.checkpoints.suite import CheckpointRef, Suite


@command
def audit(
    suite: str,
    *,
    steps: str | None = None,
    revision_pattern: str | None = None,
    by: Literal["step", "tokens"] | None = None,
    stage: str | None = None,
    seed: str | None = None,
    preset: str | None = None,
    manifest: Path | None = None,
    manifest_out: Path | None = None,
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
    preset
        A known suite (trainhooks suites): the order of its stages, and its seed.
    manifest
        A CSV or YAML table of the suite's checkpoints: place, step or tokens, stage, seed. It may be the suite itself.
    manifest_out
        Write the series as such a table, to be edited, before anything is read of it.
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

    if head is not None and params != "head":
        raise ValueError("--head names the output embedding, and --params other tensors: leave one of them out.")
    naming = {"revision_pattern": revision_pattern, "by": by, "stage": stage, "seed": seed, "manifest": manifest}
    runs = _listed(suite, manifest_out, steps=steps, preset=preset, **naming)
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


def _listed(suite: str, manifest_out: Path | None, **naming: Any) -> tuple[Suite, ...]:
    """The runs of a suite; what was read of its names goes to a manifest, if wanted, even where it is several."""
    from trainhooks.checkpoints.manifest import manifest_text
    from trainhooks.checkpoints.suite import AmbiguousNames, list_runs

    def write(entries: Sequence[CheckpointRef]) -> None:
        if manifest_out is not None:
            manifest_out.write_text(manifest_text(entries, name=str(manifest_out)), encoding="utf-8")

    try:
        runs = list_runs(suite, **naming)
    except AmbiguousNames as error:
        write(error.found)
        raise
    write([entry for run in runs for entry in run.entries])
    return runs
