"""Names that are a number with M or B and nothing else: tokens that were seen, or the sizes of several models?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from trainhooks.checkpoints.named import AmbiguousNames, Named, sample
from trainhooks.checkpoints.names import stem_of

_SIZE = re.compile(r"[0-9]+(?:\.[0-9]+)?[MBmb]")


def sizes_or_tokens(name: str, found: Sequence[Named]) -> None:
    """Raises AmbiguousNames for bare numbers that are no regular count of tokens (`160m`, `410m`, `1b`).

    Tokens are saved every so often: all counts are multiples of the least way between two of them (`10B`, `20B`,
    `100B`), which sizes of models are not. Numbers that a manifest or an expression of the user's calls tokens are.
    """
    counts = sorted(one.parsed.tokens for one in found if one.parsed.tokens is not None)
    if len(counts) < 2 or not all(map(_is_bare, found)):
        return
    every = min((after - before for before, after in pairwise(counts) if after > before), default=0)
    if every and all(count % every == 0 for count in counts):
        return
    raise AmbiguousNames(
        f"{name}: {sample(found)} may be the tokens that one model had seen, or models of several sizes. For tokens "
        "pass --by tokens; of models give one alone, with the checkpoints of its run."
    )


def _is_bare(one: Named) -> bool:
    return not one.parsed.form and bool(_SIZE.fullmatch(stem_of(one.name)))
