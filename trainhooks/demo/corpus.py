"""Text to train on: found, tokenized with a BPE of its own, counted, cached, and cut into windows."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import sysconfig
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from rich.progress import Progress
from torch import Tensor
from torch.utils.data import Dataset

from trainhooks.core.token_counts import TokenCounts

SEPARATOR = "<|endoftext|>"
COUNTING_RULE = (
    "every position of the token stream counts once, those that start a window and are never a label included; "
    f"{SEPARATOR} follows each document and counts once a document"
)
TEXT_SUFFIXES = frozenset(
    (".txt", ".md", ".rst", ".tex", ".py", ".c", ".h", ".cpp", ".rs", ".go", ".java", ".js", ".ts", ".html", ".json")
)
_SKIPPED = frozenset(("site-packages", "dist-packages", "node_modules", "__pycache__"))
_MIN_VOCAB = 257  # the 256 bytes and the separator
_PIECE = 1 << 20  # characters that are tokenized at once; longer documents are cut after a line's end
_BATCH = 16  # pieces a call, so that the tokenizer's threads have work
_TRAIN_CHARACTERS = 64 << 20  # of evenly spaced pieces: two cores take a second for 5M


@dataclass(frozen=True, eq=False)
class Corpus:
    """A tokenized corpus.

    `ids` [tokens] is a read-only memory map of uint16, or of uint32 where the vocabulary is beyond 65,536; a
    separator follows each of the `documents`. `tokenizer` is a `tokenizers.Tokenizer`, `token_texts` has the text
    of each id (U+FFFD for bytes that are no character alone), `counts` follows `COUNTING_RULE`. The hashes are
    SHA-256, of the tokenizer's JSON and of the documents' text in order.
    """

    ids: Shaped[np.ndarray, " tokens"]
    counts: TokenCounts
    tokenizer: Any
    tokenizer_hash: str
    corpus_hash: str
    token_texts: list[str]
    documents: int


@dataclass(frozen=True)
class _Text:
    """The files of a corpus, none empty; they are read anew in each pass, so that memory stays bounded."""

    files: tuple[Path, ...]
    characters: int
    hash: str

    def documents(self) -> Iterator[str]:
        return map(_read, self.files)

    def pieces(self) -> Iterator[tuple[str, bool]]:
        """Each document in pieces, each with whether it is its document's last."""
        for document in self.documents():
            start = 0
            while start < len(document):
                end = _cut(document, start)
                yield document[start:end], end == len(document)
                start = end


def load_corpus(
    paths: Sequence[str | os.PathLike[str]] | None = None,
    *,
    vocab_size: int = 8192,
    tokenizer: str | os.PathLike[str] | None = None,
    max_bytes: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Corpus:
    """The corpus in `paths`, tokenized; by default the source text of the running Python's standard library.

    `paths` are text files, or folders whose files with a suffix in `TEXT_SUFFIXES` are taken, in the order of their
    paths; hidden folders, installed packages and binary files are passed over. Bytes that are not UTF-8 become
    U+FFFD. `max_bytes` stops after the document that reaches it.

    A byte-level BPE (Sennrich et al. 2016, arXiv 1508.07909; bytes as in Radford et al. 2019) of at most `vocab_size`
    ids is trained on up to 64M characters spread evenly over the text; id 0 separates documents. `tokenizer` is a
    tokenizer.json to take in its place: it must have the token `<|endoftext|>`, which then separates documents.
    Tokenizer, ids and counts are kept under `cache_dir`, by default `$XDG_CACHE_HOME/trainhooks`, by a hash of the
    text, the vocabulary's size or the tokenizer given, and the version of `tokenizers`; what is damaged there is made
    again. `progress` shows bars.

    Raises ValueError for a path that is missing, folders without text files, a file that is not text, text that is
    empty, a vocabulary below 257, and a file that is no such tokenizer; ImportError where `tokenizers` is missing.
    """
    given = None if tokenizer is None else _given(Path(tokenizer))
    if vocab_size < _MIN_VOCAB:
        raise ValueError(f"vocab_size is {vocab_size}; a byte-level tokenizer needs {_MIN_VOCAB} ids or more.")
    tokenizers = _tokenizers()
    named = frozenset(map(Path, paths or ()))
    text = _scan(_find(paths), max_bytes, named=named)
    which = vocab_size if given is None else hashlib.sha256(given.to_str().encode()).hexdigest()
    key = hashlib.sha256(f"1 {text.hash} {which} {tokenizers.__version__}".encode()).hexdigest()[:32]
    folder = (_default_cache() if cache_dir is None else Path(cache_dir)) / "corpora" / key
    corpus = _load(folder, text)
    if corpus is None:
        _build(folder, text, vocab_size=vocab_size, given=given, show=progress)
        corpus = _load(folder, text)
        if corpus is None:
            raise OSError(f"{folder} cannot be read back after writing: is the disk full, or another program at it?")
    return corpus


class Windows(Dataset[Tensor]):
    """Windows of `length` tokens that do not overlap, in an order that follows from `seed` on every machine.

    Item i is int64 [length]. Read in sequence, by any loop, they give the same data in the same order. What is left
    at the end of `ids`, shorter than a window, is in none.
    """

    def __init__(self, ids: Shaped[np.ndarray, " tokens"], *, length: int, seed: int) -> None:
        self._ids = ids
        self._length = length
        self._order = _shuffled(len(ids) // length, seed)

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> Int64[Tensor, " length"]:
        start = int(self._order[index]) * self._length
        return torch.from_numpy(self._ids[start : start + self._length].astype(np.int64))


def windows(corpus: Corpus, length: int, *, seed: int, minimum: int = 1) -> Windows:
    """The corpus as shuffled windows of `length` tokens; a causal LM trains on the last length - 1 of each.

    Raises ValueError where `length` is below 2 (a window needs an input and a label), or where the corpus has fewer
    than `minimum` windows, the size of a batch.
    """
    if length < 2:
        raise ValueError(f"windows have {length} tokens; needed 2 or more, an input and its label.")
    found = Windows(corpus.ids, length=length, seed=seed)
    if len(found) < minimum:
        raise ValueError(
            f"the corpus has {len(corpus.ids)} tokens, {len(found)} windows of {length}; one batch needs {minimum}. "
            "Add text, or take shorter windows or a smaller batch."
        )
    return found


def _shuffled(n: int, seed: int) -> Int64[np.ndarray, " n"]:
    """0 ... n - 1 ordered by a hash of index and seed: no generator's stream, which may change with its version."""
    offset = int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:8], "little")
    z = np.arange(n, dtype=np.uint64) + np.uint64(1)
    z = z * np.uint64(0x9E3779B97F4A7C15) + np.full(n, offset, dtype=np.uint64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)  # splitmix64 (Steele et al. 2014)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(z ^ (z >> np.uint64(31)), kind="stable").astype(np.int64)


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError("the demo's tokenizer needs tokenizers: pip install 'trainhooks[transformers]'.") from error
    return tokenizers


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trainhooks"


def _find(paths: Sequence[str | os.PathLike[str]] | None) -> list[Path]:
    """The files that `paths` name, each once, folders sorted by path."""
    if paths is None:
        library = Path(sysconfig.get_path("stdlib"))
        files = _within(library, {".py"})
        if not files:
            raise ValueError(f"this Python has no source text in {library}: pass text files or folders of your own.")
        return files
    files = []
    for path in map(Path, paths):
        if path.exists() and not path.is_dir() and not path.is_file():
            raise ValueError(f"the corpus path {path} is neither a file nor a folder: pass text files, or folders.")
        if not path.exists():
            raise ValueError(f"the corpus path {path} does not exist: pass text files, or folders of them.")
        files += _within(path, TEXT_SUFFIXES) if path.is_dir() else [path]
    if not files:
        named = ", ".join(map(str, paths)) or "no path"
        raise ValueError(f"there are no text files in {named}; needed one of {', '.join(sorted(TEXT_SUFFIXES))}.")
    return list(dict.fromkeys(files))


def _within(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """The files below `folder` with one of `suffixes`, by path; not what is hidden or an installed package."""
    files: list[Path] = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in _SKIPPED and not name.startswith(".")]
        files += [Path(root, name) for name in names if Path(name).suffix.lower() in suffixes]
    return sorted(file for file in files if file.is_file())


def _read(file: Path) -> str:
    return file.read_bytes().decode("utf-8", errors="replace")  # bytes: newlines stay what they are


def _scan(files: Sequence[Path], max_bytes: int | None, *, named: frozenset[Path]) -> _Text:
    """Reads the files once: which to use, how much text, and its hash. Binary files are passed over, unless `named`."""
    used, characters, read, digest = [], 0, 0, hashlib.sha256()
    for file in files:
        if max_bytes is not None and read >= max_bytes:
            break
        document = _read(file)
        binary = "\0" in document
        if binary and file in named:
            raise ValueError(f"{file} is not UTF-8 text (it holds a zero byte): leave it out, or convert it.")
        if binary or not document:
            continue
        encoded = document.encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)  # the length keeps documents apart
        used.append(file)
        characters += len(document)
        read += len(encoded)
    if not used:
        raise ValueError(f"the corpus is empty: {len(files)} files, none with text in it. Pass files that hold text.")
    return _Text(tuple(used), characters, digest.hexdigest())


def _cut(document: str, start: int) -> int:
    """Where the piece that starts at `start` ends: after a line's end, if one is near enough."""
    limit = start + _PIECE
    if limit >= len(document):
        return len(document)
    return document.rfind("\n", start, limit) + 1 or limit


def _load(folder: Path, text: _Text) -> Corpus | None:
    """The corpus cached in `folder`, None where it is absent or damaged."""
    try:
        counts = TokenCounts.load(folder / "counts.npz")
        serialized = (folder / "tokenizer.json").read_text(encoding="utf-8")
        ids = np.load(folder / "ids.npy", mmap_mode="r", allow_pickle=False)
        recount = TokenCounts.count(ids, vocab_size=counts.vocab_size)
    except (ValueError, OSError, EOFError):
        return None
    tokenizer_hash = hashlib.sha256(serialized.encode()).hexdigest()
    if (counts.tokenizer_hash, counts.corpus_hash) != (tokenizer_hash, text.hash):
        return None
    if not np.array_equal(recount.counts, counts.counts):
        return None
    tokenizer = _tokenizers().Tokenizer.from_str(serialized)
    each = [[token] for token in range(counts.vocab_size)]
    texts = tokenizer.decode_batch(each, skip_special_tokens=False)
    return Corpus(ids, counts, tokenizer, tokenizer_hash, text.hash, texts, len(text.files))


def _given(file: Path) -> Any:
    """The tokenizer in `file`."""
    try:
        tokenizer = _tokenizers().Tokenizer.from_file(str(file))
    except ImportError:
        raise
    except Exception as error:  # `tokenizers` raises plain Exception
        raise ValueError(f"{file} cannot be read as a tokenizer: {error}. Give a model's tokenizer.json.") from error
    if tokenizer.token_to_id(SEPARATOR) is None:
        raise ValueError(f"{file} has no token {SEPARATOR}, which is to stand between documents: give another one.")
    return tokenizer


def _rows(tokenizer: Any) -> int:
    """Ids up to the highest: more than there are tokens where some in between have none."""
    return 1 + int(max(tokenizer.get_vocab().values()))


def _build(folder: Path, text: _Text, *, vocab_size: int, show: bool, given: Any = None) -> None:
    """Trains a tokenizer where none is `given`, encodes, counts, and puts the result at `folder` in one rename."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    except OSError as error:
        raise OSError(
            f"the cache of tokenized text cannot be written: {error}. Set XDG_CACHE_HOME to a folder that can."
        ) from error
    try:
        with Progress(disable=not show) as bars:
            tokenizer = given or _train(text, vocab_size, bars)
            ids = _encode(text, tokenizer, bars)
            task = bars.add_task("counting tokens", total=None)
            serialized = tokenizer.to_str()
            counts = TokenCounts.count(
                ids,
                vocab_size=_rows(tokenizer),
                tokenizer_hash=hashlib.sha256(serialized.encode()).hexdigest(),
                corpus_hash=text.hash,
                rule=COUNTING_RULE,
            )
            bars.update(task, total=1, completed=1)
        (partial / "tokenizer.json").write_text(serialized, encoding="utf-8")
        np.save(partial / "ids.npy", ids, allow_pickle=False)
        dataclasses.replace(counts, documents=len(text.files)).save(partial / "counts.npz")
        _publish(partial, folder, text)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _publish(partial: Path, folder: Path, text: _Text) -> None:
    try:
        partial.rename(folder)
    except OSError:  # taken: by another process that was faster, or by what is damaged
        if _load(folder, text) is None:
            shutil.rmtree(folder)
            partial.rename(folder)


def _train(text: _Text, vocab_size: int, bars: Progress) -> Any:
    """A byte-level BPE; the same text and version of `tokenizers` give the same one."""
    library = _tokenizers()
    level = library.pre_tokenizers.ByteLevel
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = level(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[SEPARATOR],
        initial_alphabet=sorted(level.alphabet()),
        show_progress=False,
    )
    stride = -(-text.characters // _TRAIN_CHARACTERS)
    reading = bars.add_task("reading for the tokenizer", total=text.characters // stride)
    merging = bars.add_task("merging pairs", total=None, start=False)

    def sample() -> Iterator[str]:
        for piece, _ in islice(text.pieces(), 0, None, stride):
            yield piece
            bars.advance(reading, len(piece))
        bars.update(reading, completed=text.characters // stride)
        bars.start_task(merging)

    tokenizer.train_from_iterator(sample(), trainer=trainer)
    bars.update(merging, total=1, completed=1)
    return tokenizer


def _encode(text: _Text, tokenizer: Any, bars: Progress) -> Shaped[np.ndarray, " tokens"]:
    """The whole text as one stream of ids, the separator after each document."""
    dtype = np.uint16 if _rows(tokenizer) <= 1 << 16 else np.uint32
    separator = np.array([tokenizer.token_to_id(SEPARATOR)], dtype=dtype)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # a separator spelt out in the text stays text
    task = bars.add_task("encoding", total=text.characters)
    found: list[np.ndarray] = []
    pieces = text.pieces()
    while batch := list(islice(pieces, _BATCH)):
        for encoding, (piece, last) in zip(
            tokenizer.encode_batch_fast([piece for piece, _ in batch], add_special_tokens=False), batch, strict=True
        ):
            found.append(np.array(encoding.ids, dtype=dtype))
            found += [separator] if last else []
            bars.advance(task, len(piece))
    tokenizer.encode_special_tokens = False
    return np.concatenate(found)
