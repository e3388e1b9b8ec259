"""Whether counts and a tokenizer belong together, as far as the numbers can tell."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from scipy.ndimage import median_filter

from trainhooks.core.token_counts import TokenCounts

AGREEMENT_NEEDED = 3.5
SPECIAL_SHARE = 0.05
_MIN_PAIRS = 300
_WINDOW = 101
_SHIFTS = [shift for shift in range(-60, 61) if abs(shift) > 2]
_UNDECODABLE = "\N{REPLACEMENT CHARACTER}"


def belonging_warnings(counts: TokenCounts, *, tokenizer: str | os.PathLike[str]) -> list[str]:
    """What speaks against `counts` being made with the tokenizer in the file `tokenizer`; empty where nothing does.

    Looked at: the hash; the lengths; counts of ids that the tokenizer lacks; special tokens with more than 5% of all
    tokens (padding that was counted?); and `spelling_agreement` below 3.5, which finds permuted, shifted or foreign
    counts of the right length. The last needs 300 pairs of spellings, which tokenizers of 3,000 to 6,000 ids
    have by what they were trained on; smaller ones, and those without words, pass unjudged.

    Raises ValueError for a file that is no tokenizer, FileNotFoundError where there is none, and ImportError where
    the package that reads it is missing.
    """
    path = Path(tokenizer)
    model = load_tokenizer(path)
    found = _hash_warnings(counts, path, model) + _id_warnings(counts, model) + _special_warnings(counts, model)
    texts = model.decode_batch([[token] for token in range(counts.vocab_size)], skip_special_tokens=False)
    agreement = spelling_agreement(counts.counts, texts=texts)
    if agreement is not None and agreement < AGREEMENT_NEEDED:
        top = ", ".join(repr(texts[token]) for token in np.argsort(-counts.counts, kind="stable")[:8])
        found.append(
            f"words with and without a leading space do not have related counts (agreement {agreement:.1f}; needed "
            f"{AGREEMENT_NEEDED}): the counts are of another tokenizer, or in another order. Most frequent: {top}."
        )
    return found


def load_tokenizer(path: Path) -> Any:
    """The tokenizer in a `tokenizer.json`; raises as `belonging_warnings` does."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ImportError(
            "reading a tokenizer needs the tokenizers package: pip install 'trainhooks[corpora]'"
        ) from error
    data = path.read_bytes()
    try:
        return Tokenizer.from_str(data.decode())
    except Exception as error:  # the package raises Exception itself
        raise ValueError(f"{path} is no tokenizer: {error}. Needed a tokenizer.json.") from error


def tokenizer_vocab_size(model: Any) -> int:
    """Largest id + 1, added tokens included: ids may have gaps. Raises ValueError for an empty vocabulary."""
    ids = model.get_vocab(with_added_tokens=True).values()
    if not ids:
        raise ValueError("the tokenizer has no tokens: train it, or take another.")
    largest: int = max(ids) + 1
    return largest


def spelling_agreement(counts: Int64[np.ndarray, " vocab"], *, texts: Sequence[str]) -> float | None:
    """How much better counts go with these texts than after shifting the ids, in standard deviations of the latter.

    Spellings of one word with and without spaces (" word", "word") are pairs; their agreement is the correlation of
    log(1 + count) over the pairs, after the median of the 101 ids around has been subtracted, for ids stand in
    an order of frequency themselves. The null is the same with ids shifted by 3 ... 60 either way, which keeps that
    order. Measured: 23.6 for the counts of a Pythia run with its tokenizer and below 1 with their ids two places on;
    4.5 to 16.2 for novels, plays, speeches and programs counted with tokenizers of 4,000 ids that were trained on
    one of them, at most 2.8 with the texts of another of these.

    None where there are fewer than 300 such pairs, or the answer is not defined (all counts the same).
    """
    left, right = _spelling_pairs(texts)
    if len(left) < _MIN_PAIRS:
        return None
    logs = np.log1p(counts.astype(np.float64))
    residual = logs - median_filter(logs, size=_WINDOW, mode="nearest")
    null = [_correlation(np.roll(residual, shift), left, right) for shift in _SHIFTS]
    spread = float(np.std(null))
    if not spread > 0:
        return None
    return float((_correlation(residual, left, right) - np.mean(null)) / spread)


def _correlation(
    values: Float64[np.ndarray, " vocab"], left: Int64[np.ndarray, " pairs"], right: Int64[np.ndarray, " pairs"]
) -> float:
    """Pearson's, 0 where one side is constant."""
    a, b = values[left], values[right]
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else 0.0


def _spelling_pairs(texts: Sequence[str]) -> tuple[Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"]]:
    """Ids of every two tokens that are one word but for the spaces around it."""
    same = defaultdict(list)
    for token, text in enumerate(texts):
        word = text.strip()
        if word.isalpha() and _UNDECODABLE not in word:
            same[word].append(token)
    pairs = [(a, b) for ids in same.values() for place, a in enumerate(ids) for b in ids[place + 1 :]]
    both = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def _hash_warnings(counts: TokenCounts, path: Path, model: Any) -> list[str]:
    known = {hashlib.sha256(path.read_bytes()).hexdigest(), hashlib.sha256(model.to_str().encode()).hexdigest()}
    if counts.tokenizer_hash is None or counts.tokenizer_hash in known:
        return []
    return [f"the counts name a tokenizer of hash {counts.tokenizer_hash[:12]}, which {path} does not have."]


def _id_warnings(counts: TokenCounts, model: Any) -> list[str]:
    needed = tokenizer_vocab_size(model)
    if counts.vocab_size < needed:
        return [f"{counts.vocab_size} counts, but the tokenizer has ids up to {needed - 1}: needed {needed} entries."]
    lacking = np.ones(counts.vocab_size, dtype=bool)
    lacking[list(model.get_vocab(with_added_tokens=True).values())] = False
    counted = np.flatnonzero(lacking & (counts.counts > 0))
    if not len(counted):
        return []
    return [
        f"{len(counted)} ids have counts but no token (first: id {counted[0]} with {counts.counts[counted[0]]}): the "
        f"tokenizer has {needed} entries, the counts {counts.vocab_size}."
    ]


def _special_warnings(counts: TokenCounts, model: Any) -> list[str]:
    special = {i: token.content for i, token in model.get_added_tokens_decoder().items() if token.special}
    shares = {i: counts.counts[i] / counts.n_tokens for i in sorted(special) if i < counts.vocab_size}
    return [
        f"the special token {special[i]!r} (id {i}) is {share:.1%} of all tokens: was padding counted?"
        for i, share in shares.items()
        if share > SPECIAL_SHARE
    ]
