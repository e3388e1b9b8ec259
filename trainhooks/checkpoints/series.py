"""From names to one series: which names belong together, stages one after the other, one axis of steps or tokens.

What several readings are possible of is not guessed: `AmbiguousNames` says what was found and which option picks what.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from trainhooks.checkpoints.known_suites import KnownSuite, preset_of, stages_of
from trainhooks.checkpoints.model_sizes import sizes_or_tokens
from trainhooks.checkpoints.named import AmbiguousNames, Axis, CheckpointRef, Named, listed, pattern_of, sample
from trainhooks.checkpoints.names import BASE
from trainhooks.checkpoints.one_axis import axis_of, laid_on, no_step_twice
from trainhooks.checkpoints.stage_order import are_parallel, known_order, order_by_counts

AXES = ("step", "tokens")
_FIRST = ("stage1", "phase1")
ALL = "all"  # as a seed: none is picked, of a known suite neither


@dataclass(frozen=True)
class Series:
    """The checkpoints by ascending step; `axis` says what counts, `unread` which names are not in it, `notes` in words
    what was done to make one series."""

    entries: tuple[CheckpointRef, ...]
    axis: Axis = "step"
    unread: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choice:
    """What a user picks of names that could be several series. `stages` go one after the other as given.

    `known` is what is known of the suite by its name: the order of its stages counts where none are picked; with
    `preset` its seed is picked too.
    """

    by: str | None = None
    stages: tuple[str, ...] = ()
    seed: str | None = None
    known: KnownSuite | None = None
    preset: bool = False

    @classmethod
    def of(
        cls,
        *,
        by: str | None = None,
        stage: str | Sequence[str] | None = None,
        seed: object = None,
        preset: str | None = None,
    ) -> Choice:
        """From options; `stage` is a text with commas, or names. Raises ValueError for an axis that is none."""
        if by is not None and by not in AXES:
            raise ValueError(f"a series goes by {' or '.join(AXES)}, not by {by!r}.")
        parts = stage.split(",") if isinstance(stage, str) else list(stage or ())
        named = tuple(part.strip() for part in parts if part.strip())
        known = None if preset is None else preset_of(preset)
        return cls(by, named, None if seed is None else str(seed), known, known is not None)


def one_series(name: str, found: Sequence[Named], choice: Choice) -> Series:
    """The one series that these names are.

    Raises AmbiguousNames for several seeds, several kinds of names, parallel stages or stages whose order no name
    tells; ValueError for a choice that is not there and for two checkpoints of one step.
    """
    try:
        return _one_series(name, found, choice)
    except AmbiguousNames as error:
        error.found = tuple(_as_read(one) for one in found)
        raise


def _as_read(one: Named) -> CheckpointRef:
    step = one.parsed.step if one.parsed.step is not None else one.parsed.chunk
    tokens, stage, seed = one.parsed.tokens, one.parsed.stage, one.parsed.seed
    return CheckpointRef(_place(one), one.place, one.name, step, tokens, stage, seed)


def _informed(found: Sequence[Named], choice: Choice) -> tuple[Choice, list[str]]:
    """The choice with what is known of the suite, and what that decided."""
    known = choice.known
    if known is None:
        return choice, []
    notes = []
    if choice.preset and choice.seed is None and known.seed in {one.parsed.seed for one in found}:
        choice = replace(choice, seed=known.seed)
    there = dict.fromkeys(one.parsed.stage for one in found)
    stages = () if choice.stages or len(there) < 2 else stages_of(known, list(there))
    if stages:
        choice = replace(choice, stages=stages)
        notes.append(f"stages as known of {known.name}: {', '.join(stages)}. --stage takes others.")
    return choice, notes


def _one_series(name: str, found: Sequence[Named], choice: Choice) -> Series:
    picked = bool(choice.stages)
    choice, known = _informed(found, choice)
    of_seed, unread = _of_one_seed(name, found, choice)
    of_form, others = _of_one_form(name, of_seed)
    once, twins = _last_twins(of_form)
    unread += [one.name for one in (*others, *twins)]
    stages, more, notes = _in_order(name, once, choice)
    unread += [one.name for one in more]
    if choice.by is None and choice.known is None:
        sizes_or_tokens(name, once)
    axis = axis_of(name, [one for stage in stages for one in stage], by=choice.by)
    entries, counted, repeated = laid_on(axis, stages, picked=picked)
    no_step_twice(name, entries, axis)
    entries = sorted(entries, key=lambda entry: entry.step)
    if choice.known is not None and choice.known.unit == "chunk" and axis == "step":
        axis = "chunk"
    return Series(tuple(entries), axis, (*unread, *repeated), (*known, *notes, *counted))


def _of_one_seed(name: str, found: Sequence[Named], choice: Choice) -> tuple[list[Named], list[str]]:
    seeds: dict[str, list[Named]] = defaultdict(list)
    for one in found:
        seeds[one.parsed.seed].append(one)
    if choice.seed is not None and choice.seed != ALL:
        if choice.seed not in seeds:
            raise ValueError(f"{name} has no seed {choice.seed!r}; it has {', '.join(filter(None, seeds)) or 'none'}.")
        left = [one.name for seed, names in seeds.items() if seed != choice.seed for one in names]
        return seeds[choice.seed], left
    if len(seeds) > 1:
        shown = "; ".join(f"{seed or 'no seed'}: {sample(names)}" for seed, names in seeds.items())
        picks = ", ".join(f"--seed {seed}" for seed in list(seeds)[:4] if seed)
        raise AmbiguousNames(
            f"{name} holds several runs, by their seeds: {shown}. A series is of one run: pick one ({picks}), or "
            "--seed all for a store of each.",
            seeds=[seed for seed in seeds if seed],
        )
    return list(found), []


def _of_one_form(name: str, found: Sequence[Named]) -> tuple[list[Named], list[Named]]:
    """The names of one kind; names that no known word tells the step of give way to those where one does."""
    sure = [one for one in found if one.parsed.sure]
    doubtful = [one for one in found if not one.parsed.sure]
    kept, others = (sure, doubtful) if sure else (doubtful, [])
    forms: dict[tuple[str, ...], list[Named]] = defaultdict(list)
    for one in kept:
        # a stage's own word may be all there is: ext1000 beside step1000
        forms[one.parsed.form or (("step",) if one.parsed.stage else ())].append(one)
    if len(forms) > 1:
        shown = "; ".join(sample(names) for names in forms.values())
        picks = ", ".join(f"--revision-pattern '{pattern_of(names[0])}'" for names in list(forms.values())[:4])
        raise AmbiguousNames(
            f"{name} mixes names of several patterns, perhaps of several runs: {shown}. Pick one by a regular "
            f"expression (revision_pattern) whose group is the step: {picks}."
        )
    return kept, others


def _last_twins(found: Sequence[Named]) -> tuple[list[Named], list[Named]]:
    """Of a file that was saved again (Lightning's -v1) the last, where that happened at one step only."""
    twins: dict[tuple[str, int | None], list[Named]] = defaultdict(list)
    for one in found:
        twins[one.parsed.stage, one.parsed.step].append(one)
    several = [names for names in twins.values() if any(one.parsed.version for one in names) and len(names) > 1]
    if len(several) != 1:
        return list(found), []
    *former, _last = sorted(several[0], key=lambda one: one.parsed.version)
    return [one for one in found if one not in former], former


def _in_order(name: str, found: Sequence[Named], choice: Choice) -> tuple[list[list[Named]], list[Named], list[str]]:
    """Stages one after the other, the names of stages that were not picked, and what was done."""
    stages: dict[str, list[Named]] = defaultdict(list)
    for one in found:
        stages[one.parsed.stage].append(one)
    notes = [] if {"", BASE} & set(choice.stages) else _join_unprefixed(stages)
    if choice.stages:
        picked = [_picked(name, one, stages) for one in choice.stages]
        left = [one for stage, names in stages.items() if stage not in picked for one in names]
        return [stages[stage] for stage in picked], left, notes
    order = known_order(list(stages))
    if order is None and not are_parallel(stages):
        order = order_by_counts({stage: (min(map(_place, n)), max(map(_place, n))) for stage, n in stages.items()})
    if order is None:
        raise _undecided(name, stages)
    return [stages[stage] for stage in order], [], notes


def _picked(name: str, asked: str, stages: dict[str, list[Named]]) -> str:
    stage = "" if asked == BASE and BASE not in stages else asked
    if stage not in stages:
        raise ValueError(f"{name} has no stage {asked!r}; it has {', '.join(stage or BASE for stage in stages)}.")
    return stage


def _join_unprefixed(stages: dict[str, list[Named]]) -> list[str]:
    """Names without a stage beside a first stage are of it where none of their steps is there (OLMo 2 has seven)."""
    first = next((stage for stage in _FIRST if stage in stages), None)
    if "" not in stages or first is None:
        return []
    if {one.parsed.step for one in stages[""]} & {one.parsed.step for one in stages[first]}:
        return []
    joined = stages.pop("")
    stages[first] += [replace(one, parsed=replace(one.parsed, stage=first)) for one in joined]
    return [f"{len(joined)} names without a stage are taken for {first}: {listed([one.name for one in joined])}."]


def _place(one: Named) -> int:
    parsed = one.parsed
    return next(value for value in (parsed.step, parsed.tokens, parsed.chunk) if value is not None)


def _undecided(name: str, stages: dict[str, list[Named]]) -> AmbiguousNames:
    shown = "; ".join(f"{stage or BASE}: {sample(names)}" for stage, names in stages.items())
    picks = [f"--stage {stage or BASE}" for stage in list(stages)[:4]]
    two = [stage or BASE for stage in list(stages)[:2]]
    return AmbiguousNames(
        f"{name} holds several stages whose order its names do not tell: {shown}. Pick one ({', '.join(picks)}), or "
        f"several in their order (--stage {','.join(two)}), or write a manifest (audit --manifest-out, --manifest)."
    )
