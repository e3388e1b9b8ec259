"""In which order the stages of a training stand, as far as their own names and counts tell."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import pairwise

_NUMBERED = re.compile(r"(?:stage|phase)([0-9]+)")
_LENGTHS = re.compile(r"(.*?)-?([0-9]+)[^-_]*[-_]to[-_]([0-9]+).*")


def known_order(stages: list[str]) -> list[str] | None:
    """The order that the stages' own names tell; None where two of them could follow each other either way.

    Numbered stages by number, at most one of a number; then at most one later phase (extension, long context, decay),
    or several whose context lengths follow on each other (`lc-4k-to-32k`, `lc-32k-to-64k`).
    """
    numbers, later = _by_number(stages)
    if are_parallel(stages) or (0 in numbers and len(numbers) > 1):
        return None
    if len(later) > 1:
        lengths = [_LENGTHS.fullmatch(stage) for stage in later]
        if not all(lengths):
            return None
        spans = sorted((int(match[2]), int(match[3]), match[0]) for match in lengths if match)
        if any(before[1] != after[0] for before, after in pairwise(spans)):
            return None
        later = [stage for _, _, stage in spans]
    return [*(numbers[number][0] for number in sorted(numbers)), *later]


def is_numbered(stage: str) -> bool:
    """Whether a stage has its place among the others by number (`stage2`, `phase2-ingredient1`)."""
    return bool(_NUMBERED.match(stage))


def _by_number(stages: Iterable[str]) -> tuple[dict[int, list[str]], list[str]]:
    """Stages by their number, 0 for those without a name, and those that have a name and no number."""
    numbers: dict[int, list[str]] = defaultdict(list)
    later = []
    for stage in stages:
        match = _NUMBERED.match(stage)
        if not stage or match:
            numbers[int(match[1]) if match else 0].append(stage)
        else:
            later.append(stage)
    return numbers, later


def are_parallel(stages: Iterable[str]) -> bool:
    """Whether several stages have one number: branches beside each other (ingredients)."""
    return any(len(named) > 1 for named in _by_number(stages)[0].values())


def order_by_counts(spans: Mapping[str, tuple[int, int]]) -> list[str] | None:
    """The stages by their steps, first and last, where those go on counting, so that they tell the order; else None.

    An extension whose counts lie before those of the main part counts anew: then they tell nothing.
    """
    ordered = sorted((*span, stage) for stage, span in spans.items())
    if any(before[1] >= after[0] for before, after in pairwise(ordered)):
        return None
    order = [stage for _, _, stage in ordered]
    numbers, later = _by_number(order)
    told = [*(stage for number in sorted(numbers) for stage in numbers[number]), *later]
    return order if order == told else None
