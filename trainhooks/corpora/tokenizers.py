"""A tokenizer from whatever lies beside a model: a tokenizer.json, a folder, a hub id, or a list of scored pieces."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SPACE = "▁"


@dataclass(frozen=True)
class Tokenizer:
    """Text to ids and back, without special tokens added; `backend` is a `tokenizers.Tokenizer`."""

    backend: Any

    @property
    def size(self) -> int:
        """One more than the largest id."""
        largest: int = 1 + max(self.backend.get_vocab(with_added_tokens=True).values())
        return largest

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text."""
        return [found.ids for found in self.backend.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a sequence of ids."""
        return str(self.backend.decode([int(token) for token in ids], skip_special_tokens=False))

    def piece(self, token: int) -> str:
        """The vocabulary's own spelling of one id ("Ġthe"); "<id>" where it has none."""
        return self.backend.id_to_token(int(token)) or f"<{int(token)}>"

    def token_id(self, token: str | int) -> int:
        """The id of a token given as an id, as text that is one token (" the"), or in the vocabulary's spelling.

        Raises ValueError, naming the pieces, for a text of several tokens, and for an id that does not exist.
        """
        if isinstance(token, int):
            if not 0 <= token < self.size:
                raise ValueError(f"got token {token}; the tokenizer has ids 0 to {self.size - 1}.")
            return token
        spelled = self.backend.token_to_id(token)
        if spelled is not None:
            return int(spelled)
        ids = self.encode([token])[0]
        if len(ids) != 1:
            pieces = ", ".join(f"{self.piece(i)!r} ({i})" for i in ids) or "none"
            raise ValueError(
                f"{token!r} is not one token but {len(ids)}: {pieces}. Give one of these; a word inside a text mostly "
                "begins with a space."
            )
        return ids[0]


def load_tokenizer(source: str | Path) -> Tokenizer:
    """The tokenizer of `source`: a tokenizer.json (or a JSON list of [piece, score], as llama2.c exports a
    SentencePiece BPE), a folder that holds one, or a hub id.

    Raises ValueError where there is none or it cannot be read, ImportError without `transformers`.
    """
    path = Path(source)
    if path.is_dir():
        path = _in_folder(path)
    if path.is_file():
        return Tokenizer(_from_file(path))
    if not path.exists():
        return Tokenizer(_from_transformers(str(source)))
    return Tokenizer(_from_transformers(str(path)))


def _in_folder(folder: Path) -> Path:
    """The folder's tokenizer.json or its one list of scored pieces (tok*.json); else the folder itself."""
    if (folder / "tokenizer.json").is_file():
        return folder / "tokenizer.json"
    lists = sorted(folder.glob("tok*.json"))
    lists = [path for path in lists if path.name not in ("tokenizer_config.json", "tokens.json")]
    return lists[0] if len(lists) == 1 else folder


def _from_file(path: Path) -> Any:
    tokenizers = _tokenizers()
    text = path.read_text(encoding="utf-8")
    try:
        held = json.loads(text)
        found = _scored_pieces(held) if isinstance(held, list) else tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises Exception itself
        raise ValueError(f"{path} is no tokenizer.json and no list of [piece, score]: {error}") from error
    found.no_truncation()
    found.no_padding()
    return found


def _scored_pieces(pieces: list[Any]) -> Any:
    """SentencePiece's BPE: the pair whose joined piece has the best score merges first, unknown text is bytes."""
    tokenizers = _tokenizers()
    spellings = [str(piece).replace(" ", _SPACE) for piece, _ in pieces]
    # an id keeps its place where a spelling comes twice (a byte and a character): the character is the one that is met
    vocab = {spelling: number for number, spelling in enumerate(spellings)}
    merges = [
        (-float(score), number, (spelling[:cut], spelling[cut:]))
        for number, (spelling, (_, score)) in enumerate(zip(spellings, pieces, strict=True))
        for cut in range(1, len(spelling))
        if spelling[:cut] in vocab and spelling[cut:] in vocab
    ]
    model = tokenizers.models.BPE(
        vocab=vocab, merges=[pair for *_, pair in sorted(merges)], byte_fallback=True, unk_token=spellings[0]
    )
    found = tokenizers.Tokenizer(model)
    found.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend(_SPACE), tokenizers.normalizers.Replace(" ", _SPACE)]
    )
    decoders = tokenizers.decoders
    found.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return found


def _from_transformers(name: str) -> Any:
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ImportError(
            "models and their tokenizers need transformers: pip install 'trainhooks[transformers]'."
        ) from error
    try:
        found = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # many kinds, and all mean that there is no tokenizer to use
        raise ValueError(
            f"{name} has no tokenizer that can be loaded ({_first_line(error)}): pass tokenizer=, "
            "the path of a tokenizer.json."
        ) from error
    backend = getattr(found, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(
            f"the tokenizer of {name} is not of the tokenizers library: pass the path of a tokenizer.json."
        )
    backend.no_truncation()
    backend.no_padding()
    return backend


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line), type(error).__name__)


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError("reading text needs tokenizers: pip install 'trainhooks[transformers]'.") from error
    return tokenizers


def read_token_texts(path: str | Path) -> list[str]:
    """The text of each id of a tokenizer.json, alone, special tokens included; U+FFFD for bytes that are no character.

    SentencePiece's mark of a leading space is kept. Raises ImportError without tokenizers, FileNotFoundError,
    ValueError for a file that is no tokenizer.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ImportError("a tokenizer.json needs tokenizers: pip install 'trainhooks[corpora]'") from error
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}; needed is a tokenizer.json.")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing narrower
        raise ValueError(f"{path} is no tokenizer.json: {error}") from error
    pieces = {index: piece for piece, index in tokenizer.get_vocab(with_added_tokens=True).items()}
    size = max(pieces, default=-1) + 1
    decoded = tokenizer.decode_batch([[index] for index in range(size)], skip_special_tokens=False)
    marked = ((pieces.get(index, ""), text) for index, text in enumerate(decoded))
    return [piece if piece.startswith("\u2581") else text for piece, text in marked]
