"""One JSON object a record and line: the format every tool can tail."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TextIO

from trainhooks.sinks.base import Record, Sink
from trainhooks.store import Layout


class JsonLinesSink(Sink):
    """Writes {"step": t, tag: number, ...} to a file; infinite numbers are written as null."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file: TextIO | None = None

    def open(self, layout: Layout, *, restart_step: int | None = None) -> None:
        """Create the file, or continue it up to and including `restart_step`."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept: list[str] = []
        if restart_step is not None and self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= restart_step]
        self._file = self.path.open("w", encoding="utf-8")
        self._file.writelines(kept)

    def write(self, record: Record) -> None:
        """Append a line and hand it to the system."""
        assert self._file is not None, "open() comes first"
        numbers = {tag: x if math.isfinite(x) else None for tag, x in record.scalars.items()}
        self._file.write(json.dumps({"step": record.step, **numbers}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
