"""Revisions of public checkpoint suites that are known to be wrong, each with the place where it was reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

_PYTHIA = "https://github.com/EleutherAI/pythia/issues/"
_OLMO = "https://github.com/allenai/OLMo/issues/"

_FINAL_28B = (
    *(0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
    *range(1000, 65000, 1000),
    *(65000, 70000, 80000, 90000, 100000, 103000, 110000, 120000, 130000, 140000),
)


@dataclass(frozen=True)
class KnownBad:
    """One report: in repositories whose id fits the glob `repository`, `steps` are wrong in tensors that fit `tensors`.

    `note` says what is wrong, `source` is the address of the report. Globs are matched with case.
    """

    repository: str
    steps: tuple[int, ...]
    note: str
    source: str
    tensors: str = "*"


KNOWN_BAD = (
    KnownBad(
        "EleutherAI/pythia-2.8b",
        _FINAL_28B,
        "the branch serves weights of the final step (85 branches beside step143000 itself)",
        _PYTHIA + "205",
    ),
    KnownBad(
        "EleutherAI/pythia-12b",
        (50000, 58000),
        "the first shard (input embedding, early layers) is the final step's; the output embedding is right",
        _PYTHIA + "206",
        tensors="*embed_in*",
    ),
    KnownBad(
        "EleutherAI/pythia-*[mb]",  # the eight sizes; deduped runs and other seeds are seen by their content
        (1,),
        "step1 repeats step0 (in some models step2 does too): nothing had moved yet",
        _PYTHIA + "83",
    ),
    KnownBad("EleutherAI/pythia-410m-seed9", (40000,), "the branch has no weights", _PYTHIA + "202"),
    KnownBad("EleutherAI/pythia-410m-seed6", (88000,), "the branch has no weights", _PYTHIA + "202"),
    KnownBad("EleutherAI/pythia-410m-seed2", (111000,), "the branch has no weights", _PYTHIA + "202"),
    KnownBad(
        "EleutherAI/pythia-160m-weight-seed[12]",
        (0,),
        "the later steps do not descend from this initialization",
        _PYTHIA + "203",
    ),
    KnownBad(
        "allenai/OLMo-2-1124-7B",
        (101000, 175000, 300000),
        "the three branches serve the same weights",
        _OLMO + "915",
    ),
)


def known_bad(repository: str, *, steps: Sequence[int], tensors: Sequence[str]) -> list[tuple[KnownBad, list[int]]]:
    """The reports that touch these steps and tensor names of a hub repository, each with the steps it touches.

    Empty for a repository nobody has reported. A report stands until it is taken out of the table, so a repaired
    branch is still named.
    """
    found = []
    for report in KNOWN_BAD:
        touched = sorted(set(steps) & set(report.steps))
        same_tensors = any(fnmatchcase(name, report.tensors) for name in tensors)
        if touched and same_tensors and fnmatchcase(repository, report.repository):
            found.append((report, touched))
    return found
