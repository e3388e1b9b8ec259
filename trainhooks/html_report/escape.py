"""What comes from files, as HTML and as JSON within HTML: nothing of it is ever markup or code."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from trainhooks.core.html import text


def script_json(value: Any) -> str:
    """JSON that can stand in a script element: no character of it can end the element or a line."""
    told = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return told.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, caption: str = "", numbers: bool = False) -> str:
    """A table with its first column as row headings; `numbers`: the others to the right."""
    kind = ' class="number"' if numbers else ""
    top = "".join(f'<th scope="col"{kind if place else ""}>{text(one)}</th>' for place, one in enumerate(head))
    body = "".join(
        f'<tr><th scope="row">{text(row[0])}</th>' + "".join(f"<td{kind}>{text(one)}</td>" for one in row[1:]) + "</tr>"
        for row in rows
    )
    named = f"<caption class='soft'>{text(caption)}</caption>" if caption else ""
    first = f"<thead><tr>{top}</tr></thead>" if head else ""
    # it can be wider than a phone and scrolls then, also by keyboard
    named_region = f'<div class="wide" tabindex="0" role="region" aria-label="{text(caption or "table")}">'
    return f"{named_region}<table>{named}{first}<tbody>{body}</tbody></table></div>"
