"""How much of a mapped file lies in this process' memory, as Linux tells in /proc/self/smaps."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

SMAPS = Path("/proc/self/smaps")
needs_pages = pytest.mark.skipif(
    not (SMAPS.exists() and Path("/proc/self/pagemap").exists()), reason="/proc says nothing of pages here"
)


def resident_bytes(folder: Path) -> dict[str, list[int]]:
    """For each file under `folder` that is mapped, the bytes of each of its maps that are in memory."""
    found: dict[str, list[int]] = {}
    name = ""
    for line in SMAPS.read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            name = line.split(maxsplit=5)[5] if len(line.split(maxsplit=5)) == 6 else ""
        elif line.startswith("Rss:") and name.startswith(str(folder)):
            found.setdefault(name, []).append(int(line.split()[1]) * 1024)
    return found
