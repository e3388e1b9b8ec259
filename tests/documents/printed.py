"""What the README and the docs print in fences, cut into blocks and commands."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", "docs/*.md", "docs/**/*.md", "store/SPEC.md", "SECURITY.md")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OPTIONAL = re.compile(r"\[([^\]]*)\]")


@dataclass(frozen=True)
class Block:
    """One fence: its page, the line it begins on, its language ("" where none is given), its text."""

    page: str
    line: int
    language: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"

    def commands(self) -> list[str]:
        """The command lines of a bash block, without comments; what stands in [brackets] is taken along."""
        lines = [OPTIONAL.sub(r"\1", line.partition(" #")[0]).strip() for line in self.text.splitlines()]
        return [line for line in lines if line]


def pages() -> list[Path]:
    return sorted({path for pattern in PAGES for path in ROOT.glob(pattern)})


def blocks(language: str | None = None) -> list[Block]:
    """All blocks, or those of a language, in the order in which they are printed."""
    found = []
    for path in pages():
        text = path.read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(str(path.relative_to(ROOT)), line, match[1], match[2]))
    return [block for block in found if language in (None, block.language)]


def words(command: str) -> list[str]:
    return shlex.split(command)
