"""Text as a terminal may be given it: what comes from a file can neither drive the terminal nor pass for our own lines.

All that this package prints goes through here: commands through `say`, reports through `page`, tables through `cell`
and `draw`, TensorBoard's tags through `shown`.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

# of Unicode's categories: controls, formats (bidi controls, zero widths), surrogates, line and paragraph separators
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
_PLAIN = re.compile(r"[\x20-\x7e\n]*\Z")  # most of what is printed; re-written character by character otherwise


def shown(text: object) -> str:
    """One line of text: every character that is not seen as itself is spelled by its code, a newline as \\n."""
    return _spelled(str(text)).replace("\n", "\\n")


def shown_lines(text: object) -> str:
    """Text of several lines, such as a report: as `shown`, and its newlines stay."""
    return _spelled(str(text))


def page(lines: Iterable[object]) -> str:
    """A report's lines as its text: each `shown`, so that none of them can pass for two."""
    return "".join(f"{shown(line)}\n" for line in lines)


def cell(text: object) -> Text:
    """One line for a table of rich's, in which no markup is looked for."""
    from rich.text import Text

    return Text(shown(text))


def plain_console(**options: Any) -> Console:
    """A console of rich's that takes what it is given as it is: no markup, no emoji codes, no highlighting."""
    from rich.console import Console

    return Console(markup=False, emoji=False, highlight=False, **options)


def say(text: object = "", *, end: str = "\n", error: bool = False) -> None:
    """Print text of one or several lines on standard output (`error`: standard error), whatever its encoding."""
    stream = sys.stderr if error else sys.stdout
    coding = getattr(stream, "encoding", None) or "utf-8"
    print(shown_lines(text).encode(coding, "backslashreplace").decode(coding), end=end, file=stream)


def sayer(console: Console, *, soft_wrap: bool = False) -> Callable[[object], None]:
    """`say` through a console, such as one that has a bar on it; `soft_wrap` leaves long lines to the terminal."""
    plain: Any = {"markup": False, "emoji": False, "highlight": False, "soft_wrap": soft_wrap}
    return lambda text: console.print(shown_lines(text), **plain)


def draw(console: Console, what: Table | Text) -> None:
    """Put a table or a paragraph, whose texts went through `cell` or `shown`, on a console."""
    console.print(what)


def _spelled(text: str) -> str:
    return text if _PLAIN.match(text) else "".join(map(_character, text))


def _character(one: str) -> str:
    if one == "\n" or unicodedata.category(one) not in _UNSEEN:
        return one
    code = ord(one)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
