"""Files of TensorBoard's projector: the output embedding of the most frequent tokens, with text and count bin."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trainhooks.core.printable import shown
from trainhooks.store import Layout
from trainhooks.store.format.precision import unpack

logger = logging.getLogger("trainhooks")

MOST = 1000
NAME = "trainhooks output embedding"
FOLDER = "trainhooks-projector"


class FrequentRows:
    """The rows of the most frequent tokens: kept from each matrix, written when the run ends or is left."""

    def __init__(self, layout: Layout) -> None:
        counts = np.arange(layout.vocab, 0, -1) if layout.token_count is None else np.asarray(layout.token_count)
        self._ids = np.argsort(-counts, kind="stable")[:MOST]
        self._counts = None if layout.token_count is None else counts[self._ids]
        texts = layout.token_text
        self._texts = [f"token {id}" if texts is None else texts[id] for id in self._ids]
        self._last: tuple[int, np.ndarray] | None = None

    def take(self, step: int, matrix: np.ndarray) -> None:
        """Keep these rows of a matrix [vocab, dim] (a copy; uint16 where they are the bits of bfloat16)."""
        self._last = step, matrix[self._ids]

    def write(self, folder: Path) -> None:
        """Write the last rows below a run's folder, and name them in its configuration of the projector."""
        if self._last is None:
            return
        step, rows = self._last
        rows = unpack(rows) if rows.dtype == np.uint16 else rows
        rows = rows[finite := np.isfinite(rows).all(axis=1)]
        if not len(rows):
            return
        place = folder / FOLDER
        place.mkdir(parents=True, exist_ok=True)
        np.savetxt(place / "tensors.tsv", rows, fmt="%.5g", delimiter="\t")
        lines = [line for line, kept in zip(self._labels(), finite, strict=True) if kept]
        (place / "metadata.tsv").write_text("\n".join(["token\tid\tcount\tbin", *lines]) + "\n", encoding="utf-8")
        _name(folder, step)

    def _labels(self) -> Sequence[str]:
        counts = ["unknown"] * len(self._ids) if self._counts is None else [str(count) for count in self._counts]
        bins = ["unknown"] * len(self._ids) if self._counts is None else [count_bin(int(c)) for c in self._counts]
        columns = zip(self._texts, self._ids, counts, bins, strict=True)
        return [f"{label(text)}\t{id}\t{count}\t{bin_}" for text, id, count, bin_ in columns]


def label(text: str) -> str:
    """A token's text as a label: what cannot be seen is spelled, and outer blanks can be seen."""
    return "'" + shown(text) + "'" if text != text.strip() or not text else shown(text)


def count_bin(count: int) -> str:
    """The power of ten that a count lies in."""
    if count < 1:
        return "0"
    power = len(str(int(count))) - 1
    return f"{10**power:,} to {10 ** (power + 1) - 1:,}"


def _name(folder: Path, step: int) -> None:
    """Write the projector's configuration; what others have named there stays."""
    from google.protobuf import text_format
    from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

    path, config = folder / "projector_config.pbtxt", ProjectorConfig()
    try:
        if path.exists():
            text_format.Parse(path.read_text(encoding="utf-8"), config)
    except (text_format.ParseError, UnicodeDecodeError) as error:
        logger.warning("%a is no configuration of the projector, and stays as it is: %a", str(path), str(error))
        return
    others = [one for one in config.embeddings if not one.tensor_name.startswith(NAME)]
    del config.embeddings[:]
    config.embeddings.add(
        tensor_name=f"{NAME}, step {step}",
        tensor_path=f"{FOLDER}/tensors.tsv",
        metadata_path=f"{FOLDER}/metadata.tsv",
    )
    config.embeddings.extend(others)
    path.write_text(text_format.MessageToString(config), encoding="utf-8")
