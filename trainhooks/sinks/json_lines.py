"""One JSON object a record and line: the format every tool can tail."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TextIO

from trainhooks.sinks.base import Record, Sink, check_folder, opened
from trainhooks.store import Layout


class JsonLinesSink(Sink):
    """Writes {"step": t, tag: number, ...} to a file; infinite numbers are written as null.

    Vectors along the vocabulary or the embedding's dimensions are lists, whole, with NaN as null too.

    A run that restarts continues its file; a new run does not touch a file that is there, unless `overwrite`.
    """

    def __init__(self, path: str | Path, *, overwrite: bool = False) -> None:
        self.path = Path(path).expanduser()
        self.overwrite = overwrite
        self._file: TextIO | None = None

    def check(self) -> None:
        """Raises NotADirectoryError where the file's folder cannot be made."""
        check_folder(self.path.parent)

    def open(self, layout: Layout, *, restart_step: int | None = None) -> None:
        """Create the file, or continue it up to and including `restart_step`."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        exists = self.path.exists() and self.path.stat().st_size > 0
        if exists and restart_step is None and not self.overwrite:
            raise ValueError(f"{self.path} exists: choose another path, or pass JsonLinesSink(path, overwrite=True).")
        kept = self._up_to(restart_step) if exists and restart_step is not None else []
        self._file = self.path.open("w", encoding="utf-8")
        self._file.writelines(kept)

    def _up_to(self, last: int) -> list[str]:
        kept = []
        for number, line in enumerate(self.path.read_text(encoding="utf-8").splitlines(keepends=True), start=1):
            try:
                if line.endswith("\n") and line.strip() and json.loads(line)["step"] <= last:
                    kept.append(line)
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{self.path}, line {number}, is no record of a run: {line[:40]!r}.") from error
        return kept

    def write(self, record: Record) -> None:
        """Append a line and hand it to the system."""
        file = opened(self._file, "JsonLinesSink")
        numbers = {tag: _or_null(x) for tag, x in record.scalars.items()}
        lists = {tag: [_or_null(x) for x in vector.tolist()] for tag, vector in record.vectors.items()}
        file.write(json.dumps({"step": record.step, **numbers, **lists}) + "\n")
        file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _or_null(number: float) -> float | None:
    return number if math.isfinite(number) else None
