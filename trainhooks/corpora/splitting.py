"""Where a long document may be cut so that its parts give exactly the tokens of the whole, and the cutting.

A cut lies between an ASCII letter and a space that another ASCII letter follows ("a| b"). It is taken only where
the tokenizer provably treats both sides apart, step by step:

1. Added tokens are matched first. None can cross the cut if none holds a space behind a visible character, none
   swallows spaces to its right (`rstrip`), and none that must be a whole word begins with a space.
2. Normalization: NFC, NFD, NFKC and NFKD leave these three characters alone and compose none of them with what
   stands on the other side; lower-casing goes by the character.
3. Pre-tokenization: no match of the known patterns has a space behind a visible character, none looks back, and
   `(?!\\S)` is asked behind white space only, while the left side ends with a letter. So a match ends at the cut
   with or without the rest. A prefix space is added to what begins without one; the right side begins with one.
4. The model sees one pre-token at a time.

Everything else is read whole, up to `LARGEST` bytes a document, and refused beyond.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

CHUNK = 1 << 12  # bytes tokenized as one text, and what there is up to the next cut
LARGEST = 16 << 20  # bytes of a document that cannot be cut: its tokens take some 30 times that
_CUT = re.compile(rb"[A-Za-z](?= [A-Za-z])")
_LETTERWISE = frozenset(("NFC", "NFD", "NFKC", "NFKD", "Lowercase"))
_CLASSWISE = frozenset(("Digits", "Punctuation"))  # cut by the class of a character, hence also at both sides of a cut
_BY_WORD = frozenset(("ByteLevel", "Digits", "Punctuation", "Split"))  # of one pre-token they make the same always
_PATTERNS = frozenset(
    (
        # GPT-2; cl100k, in two spellings; Llama 3; Qwen 2; o200k
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]"
        r"|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    )
)


class BadDocument(ValueError):
    """A document that cannot be counted; the message says what and where inside it."""


def cuttable(tokenizer: Any) -> bool:
    """Whether a `tokenizers.Tokenizer` provably gives the same tokens for a text and for its parts (see above)."""
    parts = json.loads(tokenizer.to_str())
    return (
        all(_apart(token, tokenizer.normalizer) for token in parts["added_tokens"])
        and all(step["type"] in _LETTERWISE for step in _steps(parts["normalizer"], "normalizers"))
        and _splits(_steps(parts["pre_tokenizer"], "pretokenizers"))
    )


def next_cut(blocks: Iterable[bytes], at: int) -> int | None:
    """The first cut at byte `at` or later of what `blocks` holds from byte `at - 1` on; None where there is none."""
    tail, position = b"", at - 1
    for block in blocks:
        data = tail + block
        if found := _CUT.search(data):
            return position + found.end()
        tail = data[-2:]
        position += len(data) - len(tail)
    return None


def chunks(blocks: Iterable[bytes], *, may_cut: bool, at: int = 0) -> Iterator[str]:
    """A document's text in parts, which joined are the whole; `blocks` are UTF-8 and small, `at` is where they begin.

    Raises BadDocument for broken UTF-8 (with its byte position, counted from `at` on) and for more than `LARGEST`
    bytes without a place to cut.
    """
    held, sought = b"", 0  # no cut begins in the first `sought` bytes held
    for block in blocks:
        held += block
        begin = 0
        while may_cut and (found := _CUT.search(held, max(begin + CHUNK - 1, sought))):
            yield _decoded(held[begin : found.end()], at + begin)
            begin = found.end()
        held, at = held[begin:], at + begin
        sought = max(len(held) - 2, 0)
        if len(held) > LARGEST:
            raise BadDocument(
                f"more than {LARGEST >> 20} MiB from byte {at} on cannot be cut for this tokenizer without a risk of "
                "other tokens. Split the text into documents, as JSON lines for example."
            )
    if held:
        yield _decoded(held, at)


def parts(text: str, *, may_cut: bool) -> Iterator[str]:
    """A document that is in memory, cut as `chunks` cuts one that is read. Raises BadDocument for half surrogates."""
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise BadDocument(f"character {error.start} is half a surrogate pair, which no UTF-8 text holds") from error
    if len(data) < CHUNK:
        return iter([text] if text else [])
    return chunks([data], may_cut=may_cut)


def _decoded(data: bytes, at: int) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise BadDocument(f"byte {at + error.start} is not UTF-8 ({error.reason})") from error


def _steps(part: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """A normalizer or pre-tokenizer as the list of its steps."""
    if part is None:
        return []
    return [inner for step in part[name] for inner in _steps(step, name)] if part["type"] == "Sequence" else [part]


def _apart(token: dict[str, Any], normalizer: Any) -> bool:
    """Whether an added token can neither cross a cut nor notice one."""
    content = token["content"]
    spellings = [content, normalizer.normalize_str(content)] if normalizer is not None else [content]
    crosses = any(re.search(r"\S\s", spelling) for spelling in spellings)
    return not (crosses or token["rstrip"] or (token["single_word"] and content[:1].isspace()))


def _splits(steps: list[dict[str, Any]]) -> bool:
    """Whether a splitter that is known to end a pre-token at every cut comes before all that is not."""
    for number, step in enumerate(steps):
        if _is_splitter(step):
            return all(later["type"] in _BY_WORD for later in steps[number + 1 :])
        if step["type"] not in _CLASSWISE:
            return False
    return False


def _is_splitter(step: dict[str, Any]) -> bool:
    if step["type"] == "ByteLevel":
        return bool(step.get("use_regex", True))
    if step["type"] == "Split":
        way = (step["behavior"], step["invert"])
        return step["pattern"].get("Regex") in _PATTERNS and way in (("Isolated", False), ("Removed", True))
    return step["type"] in ("Whitespace", "WhitespaceSplit")
