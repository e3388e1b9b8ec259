"""Revisions of public checkpoint suites that are known to be wrong, each with the place where it was reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

_PYTHIA = "https://github.com/EleutherAI/pythia/issues/"
_OLMO = "https://github.com/allenai/OLMo/issues/"
_MISTRAL = "https://github.com/stanford-crfm/mistral/issues/"
_TINYLLAMA = "https://github.com/jzhang38/TinyLlama/issues/"
_HUB = "https://huggingface.co/"

Shows = Literal["", "final", "alike", "none"]

_FINAL_28B = (
    *(0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
    *range(1000, 65000, 1000),
    *(65000, 70000, 80000, 90000, 100000, 103000, 110000, 120000, 130000, 140000),
)


@dataclass(frozen=True)
class KnownBad:
    """One report: in repositories whose id fits the glob `repository`, `steps` are wrong in tensors that fit `tensors`.

    `note` says what is wrong, `source` is the address of the report. Globs are matched with case. `shows` is what the
    contents would show of it: "final" (they are those of the suite's last step), "alike" (of each other, and of
    `like`), "none" (no weights); then what they do show is said too. `repaired`: the report says that it has been.
    """

    repository: str
    steps: tuple[int, ...]
    note: str
    source: str
    tensors: str = "*"
    shows: Shows = ""
    like: tuple[int, ...] = ()
    repaired: bool = False


KNOWN_BAD = (
    KnownBad(
        "EleutherAI/pythia-2.8b",
        _FINAL_28B,
        "the branch serves weights of the final step (85 branches beside step143000 itself)",
        _PYTHIA + "205",
        shows="final",
    ),
    KnownBad(
        "EleutherAI/pythia-12b",
        (50000, 58000),
        "the first shard (input embedding, early layers) is the final step's; the output embedding is right",
        _PYTHIA + "206",
        tensors="*embed_in*",
        shows="final",
    ),
    KnownBad(
        "EleutherAI/pythia-*[mb]",  # the eight sizes; deduped runs and other seeds are seen by their content
        (1,),
        "step1 repeats step0 (in some models step2 does too): nothing had moved yet",
        _PYTHIA + "83",
        shows="alike",
        like=(0,),
    ),
    KnownBad("EleutherAI/pythia-410m-seed9", (40000,), "the branch has no weights", _PYTHIA + "202", shows="none"),
    KnownBad("EleutherAI/pythia-410m-seed6", (88000,), "the branch has no weights", _PYTHIA + "202", shows="none"),
    KnownBad("EleutherAI/pythia-410m-seed2", (111000,), "the branch has no weights", _PYTHIA + "202", shows="none"),
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
        shows="alike",
    ),
    KnownBad(
        "TinyLlama/tinyLlama-intermediate-checkpoints*",
        (715000,),
        "it is of the faulty branch to 1.5T; training went back to 1.0T, so it is no ancestor of the later ones",
        _TINYLLAMA + "72",
    ),
    KnownBad(
        "TinyLlama/TinyLlama-1.1B-intermediate-step-715k*",
        (715000,),
        "it is of the faulty branch to 1.5T; training went back to 1.0T, so it is no ancestor of the later ones",
        _TINYLLAMA + "72",
    ),
)

REPORTED = (
    KnownBad(
        "stanford-crfm/arwen-gpt2-medium-x21",
        (),
        "all its early checkpoints look like step 4000 and later of the other nine seeds; their labels are doubted",
        _MISTRAL + "199",
    ),
    KnownBad(
        "stanford-crfm/*gpt2*",
        (),
        "main was checkpoint-90k or 99000 until June 2022 (sorted as text, #146 too); no step is concerned",
        _MISTRAL + "182",
        repaired=True,
    ),
    KnownBad(
        "TinyLlama/TinyLlama-1.1B-intermediate-step-240k*",
        (240000,),
        "a user found it to work differently from 50k-105b and 480k-1T; unexplained",
        _TINYLLAMA + "41",
    ),
    KnownBad(
        "allenai/OLMo-7B-0424-hf",
        tuple(range(200000, 251001, 500)),
        "steps 200k to 251k served the final model",
        _HUB + "allenai/OLMo-7B-0424-hf/discussions/4",
        shows="final",
        repaired=True,
    ),
    KnownBad(
        "allenai/OLMo-2-1124-7B",
        (),
        "100000, 174000, 317000, 536000, 605000, 632000 and 672000 are absent; seven branches lack stage1-",
        _HUB + "allenai/OLMo-2-1124-7B/discussions/6",
    ),
    KnownBad("allenai/OLMo-2-1124-13B", (), "there is nothing before step 102500", _OLMO + "842"),
    KnownBad("allenai/OLMo-1B*", (), "steps from 117850 to 330000 are absent", _OLMO + "879"),
    KnownBad("allenai/OLMo-7B", (), "some steps are absent", _OLMO + "726"),
    KnownBad(
        "allenai/Olmo-3-1025-7B",
        (),
        "the 1415 addresses of stage 1 in the core's own format are not there (404); the branches are",
        "https://github.com/allenai/OLMo-core/issues/729",
    ),
    KnownBad(
        "allenai/OLMo-2-0425-1B",
        (),
        "names of stage 2 said 50B where 51B is right",
        _OLMO + "883",
        repaired=True,
    ),
    KnownBad("allenai/OLMo-2-*", (), "some checkpoints of stage 2 could not be loaded", _OLMO + "813", repaired=True),
    KnownBad(
        "yulan-team/YuLan-Mini-Before-Annealing",
        (),
        "phase 27 (step 262772) was uploaded in place of 25 (243198)",
        _HUB + "yulan-team/YuLan-Mini-Before-Annealing/discussions/1",
        repaired=True,
    ),
    KnownBad(
        "EleutherAI/neox-ckpt-pythia-6.9b-deduped*",
        (),
        "a comment says that early checkpoints are identical",
        _PYTHIA + "195",
    ),
    KnownBad(
        "EleutherAI/pythia-12b-deduped",
        (32000,),
        "step32000 was a late checkpoint; it was uploaded again",
        _PYTHIA + "108",
        shows="final",
        repaired=True,
    ),
    KnownBad("EleutherAI/pythia-12b", (), "branches or files were missing", _PYTHIA + "94", repaired=True),
    KnownBad("EleutherAI/pythia-6.9b", (), "branches or files were missing", _PYTHIA + "107", repaired=True),
    KnownBad("EleutherAI/pythia-1b", (), "branches or files were missing", _PYTHIA + "141", repaired=True),
    KnownBad(
        "EleutherAI/pythia-*[mb]",
        (2,),
        "step2 equals step0 too",
        _PYTHIA + "198",
        shows="alike",
        like=(0,),
    ),
)
"""What was reported without a step that is wrong in the tensors read, or is said to be repaired: said, and the contents
decide."""


def reported(repository: str, *, steps: Sequence[int]) -> list[tuple[KnownBad, list[int]]]:
    """The reports of `REPORTED` on a repository, each with the steps at hand that it names; whole ones with none."""
    found = []
    for report in REPORTED:
        touched = sorted(set(steps) & set(report.steps))
        if fnmatchcase(repository, report.repository) and (touched or not report.steps):
            found.append((report, touched))
    return found


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
