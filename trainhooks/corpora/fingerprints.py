"""What tells one file, or a part of it, from another: a name for resuming, a checksum for provenance."""

from __future__ import annotations

import hashlib
from pathlib import Path

_SAMPLES, _SAMPLE_BYTES = 16, 4096


def place(path: str | Path) -> str:
    """The file and its modification time: another file there, or the same one altered, differs."""
    path = Path(path)
    return f"{path.resolve()}@{path.stat().st_mtime_ns}"


def checksum(path: str | Path, start: int, end: int) -> str:
    """Checksum of bytes `start` to `end`: of their place and of evenly spaced samples (all of them, up to 64 kB)."""
    digest = hashlib.blake2b(f"{start} {end}".encode(), digest_size=16)
    step = max((end - start - _SAMPLE_BYTES) // (_SAMPLES - 1), _SAMPLE_BYTES)
    with open(path, "rb", buffering=0) as file:
        for begin in range(start, end, step):
            file.seek(begin)
            digest.update(file.read(min(_SAMPLE_BYTES, end - begin)))
    return digest.hexdigest()
