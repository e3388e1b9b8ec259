"""Where each record of a suite stands, beside the axis: its own step, tokens seen, its stage."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainhooks.checkpoints.suite import CheckpointRef, Suite
from trainhooks.core.variable import Variable

OWN_STEP = Variable(
    "position.own_step",
    description="the step that the checkpoint's name gives, where `step` goes by tokens or counts on over stages",
)
TOKENS = Variable(
    "position.tokens", unit="token", description="tokens seen, as the names tell or a manifest gives them"
)
STAGE = Variable("position.stage", description="the stage of training, as its place in the attribute `stages`")
POSITION_VARIABLES = (OWN_STEP, TOKENS, STAGE)


def position_variables(suite: Suite) -> tuple[Variable, ...]:
    """Those that say more than the step: of suites with tokens, of several stages, or by another axis."""
    entries = suite.entries
    own = any(entry.own_step not in (None, entry.step) for entry in entries)
    tokens = any(entry.tokens is not None for entry in entries)
    staged = any(entry.stage for entry in entries)
    wanted = zip(POSITION_VARIABLES, (own, tokens, staged), strict=True)
    return tuple(variable for variable, there in wanted if there)


def position_values(suite: Suite, entry: CheckpointRef) -> dict[str, np.ndarray]:
    """The values of `position_variables` for one checkpoint; NaN where its name does not tell one."""
    own = entry.step if entry.own_step is None and suite.axis == "step" else entry.own_step
    values = {
        OWN_STEP.name: own,
        TOKENS.name: entry.tokens,
        STAGE.name: stages(suite.entries).index(entry.stage),
    }
    told = {name: np.asarray(np.nan if value is None else float(value)) for name, value in values.items()}
    return {variable.name: told[variable.name] for variable in position_variables(suite)}


def position_attributes(suite: Suite) -> dict[str, object]:
    """What the store says of its axis: nothing where that is steps of one stage."""
    seeds = sorted({entry.seed for entry in suite.entries} - {""})
    found: dict[str, object] = {} if suite.axis == "step" else {"axis": suite.axis}
    if any(entry.stage for entry in suite.entries):
        found["stages"] = list(stages(suite.entries))
    return found | ({"suite_seed": seeds[0]} if len(seeds) == 1 else {})


def stages(entries: Sequence[CheckpointRef]) -> tuple[str, ...]:
    """The stages in their order."""
    return tuple(dict.fromkeys(entry.stage for entry in entries))
