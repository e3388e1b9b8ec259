"""From paths to pieces: which reader a file belongs to, and what a folder holds."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainhooks.corpora.arrays import bin_pieces, npy_pieces
from trainhooks.corpora.base import CorpusChunk, Settings, Tally
from trainhooks.corpora.megatron import megatron_pieces

ARRAYS = frozenset((".npy", ".bin", ".idx"))
_KNOWN = ".npy, .bin, .bin/.idx, .parquet, .arrow, or text such as .txt and .jsonl (.gz and .zst too)"


@dataclass(frozen=True)
class UnreadableFile:
    """A file that could not be opened, where bad documents are skipped: it counts as one of them."""

    key: str
    size: int
    fingerprint: str
    problem: str

    def tally(self, settings: Settings) -> Tally:
        """Nothing counted, one skipped."""
        return Tally(np.zeros(settings.vocab_size, dtype=np.int64), skipped=1, problems=[self.problem])


def open_sources(
    paths: Iterable[str | os.PathLike[str]], settings: Settings, *, bin_dtype: str = "uint16"
) -> list[CorpusChunk]:
    """The pieces of all files in `paths`, sorted by key, so that the order of the paths makes no difference.

    A folder gives every file in it, at any depth, that some reader knows; hidden ones are left out, and so are
    texts beside arrays where no tokenizer is given (a README, say). A file that is reached twice (named twice, or
    through links) is counted once. A `.bin` with an `.idx` beside it is a Megatron corpus; without one it is a bare
    stream of `bin_dtype`. A folder of `save_to_disk` and "dataset:NAME:SPLIT" are read as tables.

    Raises FileNotFoundError for a path that is not there, and ValueError where nothing is to be counted, for a
    suffix that is not known, and for a file that cannot be read; with `skip_bad` such a file is skipped and reported.
    """
    given = [os.fspath(path) for path in paths]
    sources = _unique(source for path in given for source in _sources(path, settings))
    pieces: list[CorpusChunk] = []
    for source in sources:
        try:
            pieces += _open(source, settings, bin_dtype)
        except ValueError as error:
            if not settings.skip_bad:
                raise
            pieces.append(_unreadable(Path(source), str(error)))
    if not pieces:
        raise ValueError(
            f"{', '.join(given) or 'no path'}: {len(sources)} files, with nothing to count in them; needed files that "
            f"are not empty: {_KNOWN}."
        )
    return sorted(pieces, key=lambda piece: piece.key)


def _sources(path: str, settings: Settings) -> list[str]:
    """A file or a table as it is; of any other folder what a reader knows."""
    if _is_table(path):
        if not path.startswith("dataset:") and not os.path.exists(path):
            raise FileNotFoundError(f"{path} is not there; needed a file or a folder.")
        return [path]
    if os.path.isfile(path):
        if not _is_array(path) and not _is_text(path):
            raise ValueError(f"{path} ends in {Path(path).suffix or 'nothing'}; needed {_KNOWN}.")
        return [path]
    if not os.path.isdir(path):
        what = "is a pipe or a device, which cannot be read twice" if os.path.exists(path) else "is not there"
        raise FileNotFoundError(f"{path} {what}; needed a file or a folder.")
    found = list(_walk(path))
    if settings.tokenizer is None and not all(map(_is_text, found)):
        return [name for name in found if not _is_text(name)]
    return found


def _walk(top: str) -> Iterator[str]:
    """What readers know below a folder, sorted; a loop of links is walked once."""
    seen: set[str] = set()
    for folder, inner, names in os.walk(top, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen or _is_table(folder):
            inner[:] = []
            if real not in seen:
                yield folder
            seen.add(real)
            continue
        seen.add(real)
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        paths = (os.path.join(folder, name) for name in sorted(names) if not name.startswith("."))
        yield from (path for path in paths if os.path.isfile(path) and _is_known(path))


def _is_array(path: str) -> bool:
    return Path(path).suffix.lower() in ARRAYS


def _is_text(path: str) -> bool:
    from trainhooks.corpora.texts import is_text

    return is_text(path)


def _is_table(path: str) -> bool:
    from trainhooks.corpora.tables import is_table

    return is_table(path)


def _is_known(path: str) -> bool:
    return _is_array(path) or _is_text(path) or _is_table(path)


def _unique(sources: Iterable[str]) -> list[str]:
    """Each source once, by what it really is; a Megatron pair, whichever half is named, by its `.bin`."""
    found: dict[str, str] = {}
    for source in sources:
        named = str(Path(source).with_suffix(".bin")) if source.lower().endswith(".idx") else source
        found.setdefault(os.path.realpath(named), named)
    return list(found.values())


def _open(source: str, settings: Settings, bin_dtype: str) -> list[CorpusChunk]:
    if _is_table(source):
        from trainhooks.corpora.tables import table_pieces

        return table_pieces(source, settings)
    path = Path(source)
    if not _is_array(source):
        from trainhooks.corpora.texts import text_pieces

        return text_pieces(path, settings)
    if path.suffix.lower() == ".npy":
        return npy_pieces(path, settings)
    is_pair = path.with_suffix(".idx").exists()
    return megatron_pieces(path) if is_pair else bin_pieces(path, dtype=bin_dtype, vocab_size=settings.vocab_size)


def _unreadable(path: Path, problem: str) -> UnreadableFile:
    exists = path.exists()
    size = path.stat().st_size if exists else 0
    stamp = path.stat().st_mtime_ns if exists else 0
    fingerprint = hashlib.blake2b(f"unreadable {size}".encode(), digest_size=16).hexdigest()
    return UnreadableFile(f"{path.resolve()}@{stamp}:unreadable", size, fingerprint, problem)
