"""Contexts to intervene in: documents, their split, and what a model's real forward pass brings to its head."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from trainhooks.intervene.target import Target
from trainhooks.model.hooks import watch_head_input

SUFFIXES = frozenset((".txt", ".text", ".md", ".rst", ".py", ".jsonl", ".ndjson"))
BLOCK_ELEMENTS = 1 << 24
"""Vocabulary-sized numbers formed at once: 64 MB in float32, of which some four such blocks live at a time."""

_LINES = (".jsonl", ".ndjson")
_ENOUGH_FILES = 8  # fewer plain files are cut at blank lines, for there must be documents to split and to resample
_CHARACTERS = 64  # of a document that are looked at, for each position that is its share; never fewer than 16384
_BATCH_DOCUMENTS = 64  # encoded in one call


@dataclass(frozen=True)
class Contexts:
    """What enters the head at N positions: `hidden` float32 [position, dim], the `labels` that follow [position],
    and the `document` each belongs to [position], numbered 0, 1, ... without gaps, in order."""

    hidden: Float[Tensor, "position dim"]
    labels: Int64[Tensor, "position"]
    document: Int64[Tensor, "position"]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def documents(self) -> int:
        """How many documents the positions come from."""
        return int(self.document[-1]) + 1 if len(self) else 0


def blocks(positions: int, vocab: int, *, elements: int = BLOCK_ELEMENTS) -> list[slice]:
    """Positions cut so that a block of them times the vocabulary has at most `elements` numbers (one position at
    least)."""
    size = max(1, elements // max(1, vocab))
    return [slice(start, min(start + size, positions)) for start in range(0, positions, size)]


def read_documents(
    paths: str | Path | Sequence[str | Path], *, text_field: str = "text", documents: str = "auto"
) -> list[str]:
    """Text as documents, in the order of sorted paths; white ones are left out.

    `paths` are files or folders (searched for the suffixes of `SUFFIXES`). A line of .jsonl is a document, its text
    in `text_field`. A plain file is one document where there are 8 plain files or more, otherwise it is cut at blank
    lines; `documents` "file" or "blank_line" decides it.

    Raises FileNotFoundError for a path that is not there, ValueError for text that is empty or cannot be read.
    """
    if documents not in ("auto", "file", "blank_line"):
        raise ValueError(f'documents is {documents!r}; needed "auto", "file" or "blank_line".')
    given = [paths] if isinstance(paths, (str, Path)) else list(paths)
    files = [file for path in given for file in _files(Path(path))]
    plain = sum(file.suffix.lower() not in _LINES for file in files)
    whole = documents == "file" or (documents == "auto" and plain >= _ENOUGH_FILES)
    found: list[str] = []
    for file in files:
        text = _text(file)
        if file.suffix.lower() in _LINES:
            found += _json_lines(text, file, text_field)
        else:
            found += [text] if whole else _paragraphs(text)
    found = [text for text in found if text.strip()]
    if not found:
        raise ValueError(
            f"{', '.join(map(str, given)) or 'no path'}: {len(files)} files without text; needed some text."
        )
    return found


def split_documents(
    documents: Sequence[str], *, calibration: float = 0.5, seed: int = 0
) -> tuple[list[str], list[str]]:
    """(calibration, test): whole documents at random, this share of them (at least one each) in the first part.

    Raises ValueError for fewer than two documents, or a share outside (0, 1).
    """
    if not 0 < calibration < 1:
        raise ValueError(f"calibration is {calibration}; needed a share between 0 and 1.")
    if len(documents) < 2:
        raise ValueError(
            f"got {len(documents)} document; needed 2 or more, so that slope and scale are tested on other text. Give "
            'more files, or documents="blank_line".'
        )
    order = np.random.default_rng(seed).permutation(len(documents))
    first = min(max(1, round(calibration * len(documents))), len(documents) - 1)
    return [documents[i] for i in sorted(order[:first])], [documents[i] for i in sorted(order[first:])]


@torch.no_grad()
def collect_contexts(
    target: Target,
    documents: Sequence[str],
    *,
    context_length: int = 128,
    max_positions: int = 8192,
    batch: int = 16,
    bos: int | None = None,
    seed: int = 0,
) -> Contexts:
    """One real forward pass over windows of the documents; hidden states are taken where they enter the head.

    A document is cut into windows of `context_length` tokens, the last one shorter; every token but a window's first
    is a label. Windows are taken at random, one of each document before a second of any, until there are
    `max_positions` labels. `bos` is put before every window (its label is then the window's first token). Short
    windows are padded on the right, which a causal model does not see.

    Raises ValueError where the documents together are shorter than one context, or the model takes none so long, and
    for a text whose ids do not fit the model.
    """
    windows = choose_windows(
        target, documents, context_length=context_length, max_positions=max_positions, bos=bos, seed=seed
    )
    return run_windows(target, windows, max_positions=max_positions, batch=batch)


@torch.no_grad()
def run_windows(
    target: Target, windows: Sequence[tuple[int, list[int]]], *, max_positions: int = 8192, batch: int = 16
) -> Contexts:
    """The forward pass of `collect_contexts` over windows already chosen, so that an edited model sees the same ones.

    Raises ValueError where hidden states are not finite, or ids do not fit the model.
    """
    hidden, labels, owners = [], [], []
    for start in range(0, len(windows), batch):
        part = windows[start : start + batch]
        states = _forward(target, [ids for _, ids in part])
        for (owner, ids), rows in zip(part, states, strict=True):
            hidden.append(rows[: len(ids) - 1].float())
            labels.append(torch.tensor(ids[1:]))
            owners.append(torch.full((len(ids) - 1,), owner))
    states = torch.cat(hidden)[:max_positions]
    owner = torch.cat(owners)[:max_positions].unique(return_inverse=True)[1]
    if not bool(states.isfinite().all()):
        raise ValueError(
            f"{target.name} gives hidden states that are not finite on this text; nothing can be measured."
        )
    return Contexts(states, torch.cat(labels)[:max_positions], owner)


def choose_windows(
    target: Target,
    documents: Sequence[str],
    *,
    context_length: int = 128,
    max_positions: int = 8192,
    bos: int | None = None,
    seed: int = 0,
) -> list[tuple[int, list[int]]]:
    """(document, ids) of the windows that `collect_contexts` runs, ordered by document.

    Of a long document the beginning is looked at: 64 characters for each position of its share, 16384 at least.
    Raises ValueError as `collect_contexts`.
    """
    _check_length(target, context_length, max_positions)
    longest = max(1 << 14, _CHARACTERS * max_positions // max(1, len(documents)))
    draw = np.random.default_rng(seed)
    own = [] if bos is None else [bos]
    length = context_length - len(own)
    held: list[list[list[int]]] = []
    order = draw.permutation(len(documents))
    total = first = 0
    for start in range(0, len(order), _BATCH_DOCUMENTS):
        texts = [documents[i][:longest] for i in order[start : start + _BATCH_DOCUMENTS]]
        for ids in target.tokenizer.encode(texts):
            cut = [ids[at : at + length] for at in range(0, len(ids), length)]
            cut = [own + window for window in cut if len(own + window) > 1]
            held.append([cut[i] for i in draw.permutation(len(cut))])
            total += len(ids)
            first += max((len(window) - 1 for window in held[-1][:1]), default=0)
        if first >= max_positions:
            break
    if total < length:
        raise ValueError(
            f"the text of {len(documents)} documents has {total} tokens, shorter than one context of {context_length}: "
            "give more text, or a smaller context_length."
        )
    return _round_robin(held, order, positions=max_positions)


def _round_robin(held: list[list[list[int]]], order: np.ndarray, *, positions: int) -> list[tuple[int, list[int]]]:
    chosen: list[tuple[int, list[int]]] = []
    count = 0
    for turn in range(max(map(len, held))):
        for owner, windows in zip(order, held, strict=False):
            if turn < len(windows) and count < positions:
                chosen.append((int(owner), windows[turn]))
                count += len(windows[turn]) - 1
    return sorted(chosen, key=lambda window: window[0])


def _forward(target: Target, windows: Sequence[list[int]]) -> Float[Tensor, "window token dim"]:
    """What enters the head for windows padded on the right with id 0; one real pass of the model."""
    ids = torch.zeros(len(windows), max(map(len, windows)), dtype=torch.int64)
    for row, window in zip(ids, windows, strict=True):
        row[: len(window)] = torch.tensor(window)
    if int(ids.max()) >= target.vocab:
        raise ValueError(
            f"the text has id {int(ids.max())}; {target.name} has {target.vocab} rows: another tokenizer's."
        )
    seen: list[Tensor] = []
    handle = watch_head_input(target.head.module, lambda hidden: seen.append(hidden.clone()), training_only=False)
    model: Any = target.model
    try:
        model(ids.to(target.weight.device), use_cache=False)
    finally:
        handle.remove()
    if not seen:
        raise ValueError(f"the head of {target.name} was not called in its forward pass, so nothing entered it.")
    return torch.cat(seen)


def _check_length(target: Target, context_length: int, max_positions: int) -> None:
    if context_length < 2 or max_positions < 1:
        raise ValueError(
            f"context_length is {context_length} and max_positions {max_positions}; needed 2 and 1 or more."
        )
    longest = getattr(target.model.config, "max_position_embeddings", None)
    if isinstance(longest, int) and context_length > longest:
        raise ValueError(f"context_length is {context_length}; {target.name} takes {longest} tokens at most.")


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    elif path.is_dir():
        names = (Path(folder) / name for folder, _, files in os.walk(path) for name in files)
        yield from sorted(name for name in names if name.suffix.lower() in SUFFIXES and not name.name.startswith("."))
    else:
        raise FileNotFoundError(f"{path} is not there; needed a text file or a folder of them.")


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: byte {error.start} is not UTF-8 ({error.reason}); needed plain text.") from error


def _paragraphs(text: str) -> list[str]:
    lines = (line if line.strip() else "" for line in text.splitlines())
    return [part.strip("\n") for part in "\n".join(lines).split("\n\n")]


def _json_lines(text: str, file: Path, field: str) -> Iterator[str]:
    import json

    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: not JSON ({error}); needed one object a line.") from error
        if not isinstance(record, dict) or not isinstance(record.get(field), str):
            raise ValueError(f"{file}, line {number}: needed an object with text in the field {field!r} (text_field).")
        yield record[field]
