"""A regular expression of the user's own for names: its groups, and the units behind what they take."""

from __future__ import annotations

import re
from collections.abc import Sequence

from trainhooks.checkpoints.names import MOST_DIGITS, SCALE, ParsedName, stem_of

HINT = "Pass revision_pattern (--revision-pattern), a regular expression with one group, the step."
_GROUPS = ("step", "tokens", "stage", "seed")
_NUMBER = re.compile(r"([0-9]+)(?:\.([0-9]+))?([KMBTkmbt]?[Tt]?)", flags=re.ASCII)


def compiled(expression: str) -> re.Pattern[str]:
    """The expression. Raises ValueError for what is none, and for groups of which none is the step."""
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise ValueError(f"{expression!r} is no regular expression ({error}). {HINT}") from error
    named = set(pattern.groupindex) & set(_GROUPS)
    if pattern.groups != 1 and not named & {"step", "tokens"}:
        raise ValueError(f"{expression!r} has {pattern.groups} groups; it needs one, or one named step. {HINT}")
    return pattern


def matched(pattern: re.Pattern[str], name: str) -> ParsedName | None:
    """What the groups take out of a name, with the unit in it (`240k`, `15T`); None where the expression does not fit.

    Raises ValueError for a step that is no number, and for a number cut off from its unit, which would be read a
    thousand times too small.
    """
    fits = pattern.fullmatch(name) or pattern.fullmatch(stem_of(name))
    if fits is None:
        return None
    groups = {group: fits[group] for group in pattern.groupindex if group in _GROUPS and fits[group] is not None}
    first = "step" if "step" in pattern.groupindex else "tokens" if "tokens" in pattern.groupindex else 1
    values = {key: _number(fits, key, name) for key in {first, *(k for k in groups if k in ("step", "tokens"))}}
    return ParsedName(
        form=(pattern.pattern,),
        step=values.get("step", values.get(1)),
        tokens=values.get("tokens"),
        stage=groups.get("stage", ""),
        seed=groups.get("seed", ""),
        span=fits.span(first),
    )


def check_units(pattern: re.Pattern[str], names: Sequence[str]) -> None:
    """Raises ValueError where the letters right behind what the step's group takes are several units: 15T beside 210B
    would be the lesser one."""
    samples = {_unit_behind(pattern, name): name for name in names}
    if len(samples) > 1:
        raise ValueError(
            f"the group of {pattern.pattern!r} leaves out the units, which differ: {', '.join(samples.values())}. "
            r"Take them into the group: (\d+[KMBT]), or leave the expression out."
        )


def _unit_behind(pattern: re.Pattern[str], name: str) -> str:
    fits = pattern.fullmatch(name) or pattern.fullmatch(stem_of(name))
    if fits is None:
        return ""
    end = fits.end("step" if "step" in pattern.groupindex else "tokens" if "tokens" in pattern.groupindex else 1)
    letters = re.match(r"[A-Za-z]*", fits.string[end:])
    found = letters[0].lower() if letters else ""
    return found if found in SCALE else ""


def number_of(text: str) -> int | None:
    """A number with its unit multiplied out: 20, 240k, 15T, 1.5T, 2BT; None for anything else."""
    number = None if len(text) > MOST_DIGITS else _NUMBER.fullmatch(text)
    unit = number[3].lower() if number else ""
    if number is None or unit not in SCALE or (number[2] and not unit):
        return None
    part = number[2] or ""
    found = int(number[1] + part) * SCALE[unit] // 10 ** len(part)
    return found if found < 2**63 else None


def pattern_for(names: Sequence[str]) -> str:
    """A regular expression for names that differ in one number alone, whose group takes it; empty for other names."""
    parts = [re.split(r"([0-9]+)", name) for name in names]
    texts = {tuple(part[::2]) for part in parts}
    if len(parts) < 2 or len(texts) != 1:
        return ""
    varying = [place for place in range(1, len(parts[0]), 2) if len({part[place] for part in parts}) > 1]
    if len(varying) != 1:
        return ""
    groups = [r"(\d+)" if place == varying[0] else re.escape(part) for place, part in enumerate(parts[0])]
    return "".join(groups)


def _number(fits: re.Match[str], group: str | int, name: str) -> int:
    text = fits[group]
    number = None if text is None else number_of(text)
    if number is None:
        raise ValueError(f"the group of {fits.re.pattern!r} takes {text!r} out of {name!r}, which is no step. {HINT}")
    return number
