"""Small tokenizers of their own for the tests of text, and the slow twin that counts with them."""

from collections import Counter

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from trainhooks.corpora.base import Settings, Tally

WORDS = "the cat's tail isn't as long, café naïve 42 1234 — 数 字 x= y;\tz\r\n\n  indented  end. The Cat"


def byte_level(path, *, pre_tokenizer=None, normalizer=None, added=()):
    """A byte-level BPE of some 330 ids, saved at `path`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<|end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([WORDS] * 3, trainer)
    tokenizer.add_tokens(list(added))
    tokenizer.save(str(path))
    return tokenizer


def spaces(**settings):
    """Added tokens of two and four spaces, as GPT-NeoX has them."""
    return [AddedToken(" " * number, normalized=True, **settings) for number in (2, 4)]


def nasty(seed, length):
    """Random text of words, white space, marks that compose, contractions and numbers."""
    rng = np.random.default_rng(seed)
    parts = ["a", "b", "Word", "don't", " ", " ", " ", "  ", "    ", "\n", "\r\n", "\t", "e\u0301", "\u0301", "é", "7"]
    parts += ["42", "!", "--", "'s", " 's", "数", "\u00a0", "<|end|>", "ﬁ", "🙂", "q", "the cat", " a b c "]
    return "".join(parts[index] for index in rng.integers(len(parts), size=length))


def twin(tokenizer, documents, settings):
    """Counts of documents, one token at a time: (counts, documents, tokens)."""
    found, position = Counter(), 0
    for document in documents:
        ids = tokenizer.encode(document, add_special_tokens=False).ids if isinstance(document, str) else document
        for index, token in enumerate(ids):
            window = settings.rule.window
            first = index == 0 if settings.rule.skip_first else window is not None and position % window == 0
            position += 1
            if not first and token not in settings.rule.leave_out:
                found[token] += 1
    counts = [found[token] for token in range(settings.vocab_size)]
    return counts, len(documents), position


def total(pieces, settings: Settings):
    """All pieces counted and merged."""
    tally = Tally(np.zeros(settings.vocab_size, dtype=np.int64), documents=0)
    for piece in pieces:
        tally.add(piece.tally(settings))
    return tally


def same(tally, expected):
    assert (tally.counts.tolist(), tally.documents, tally.tokens) == expected
