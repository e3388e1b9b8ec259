"""Small pieces of HTML for notebooks; what comes from files is always text in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from trainhooks.core.printable import shown_lines


def text(value: object) -> str:
    """As the text of an element, or within a quoted attribute; what cannot be seen is spelled."""
    return escape(shown_lines(value), quote=True)


def card(title: object, rows: Iterable[tuple[object, object]], *, lines: Iterable[object] = ()) -> str:
    """A heading, a table of names and values, and lines below it: what a notebook shows of an object."""
    cells = "".join(
        f"<tr><th style='text-align:left'>{text(name)}</th><td style='text-align:left'>{text(value)}</td></tr>"
        for name, value in rows
    )
    listed = "".join(f"<li>{text(line)}</li>" for line in lines)
    table = f"<table>{cells}</table>" if cells else ""
    return f"<div><b>{text(title)}</b>{table}{f'<ul>{listed}</ul>' if listed else ''}</div>"


def columns(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A table with a head."""
    top = "".join(f"<th>{text(one)}</th>" for one in head)
    body = "".join("<tr>" + "".join(f"<td>{text(one)}</td>" for one in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
