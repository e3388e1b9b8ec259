"""Published counts that are known well enough to be checked."""

from __future__ import annotations

import dataclasses
import os

from trainhooks.core.token_counts import TokenCounts

PYTHIA_VOCAB = 50277
PYTHIA_WINDOW = 2049
PYTHIA_TOKENS = 143000 * 1024 * PYTHIA_WINDOW
PYTHIA_RULE = f"every position counted, with the first of every {PYTHIA_WINDOW} tokens, which is never a label"


def pythia_counts(path: str | os.PathLike[str]) -> TokenCounts:
    """The tokens of a whole Pythia run from a published count array: int64 [50277], sum 300,039,168,000.

    That sum is 143000 updates x 1024 windows x 2049 tokens (Biderman et al. 2023, arXiv:2304.01373, section 2), so
    the first token of every window, never a label, is in it: 0.05% more than the labels, which `rule` says. The file
    (`.npy`, `.npz` or `.csv`) does not say whether it is of the standard or the deduplicated Pile.

    Raises ValueError for entries that are not whole numbers (an array that was never filled in has some near 6e-312),
    for another length, and for another sum.
    """
    counts = TokenCounts.load(path)
    if counts.vocab_size != PYTHIA_VOCAB:
        raise ValueError(
            f"{path} has {counts.vocab_size} entries; needed Pythia's {PYTHIA_VOCAB}, one for each id of its tokenizer."
        )
    if counts.n_tokens != PYTHIA_TOKENS:
        raise ValueError(
            f"{path} sums to {counts.n_tokens}; needed {PYTHIA_TOKENS} = 143000 x 1024 x {PYTHIA_WINDOW}, the tokens "
            f"of a whole Pythia run (off by {counts.n_tokens - PYTHIA_TOKENS:+d}). Is it of another run, or a part?"
        )
    return dataclasses.replace(counts, rule=PYTHIA_RULE, tokens_read=PYTHIA_TOKENS)
