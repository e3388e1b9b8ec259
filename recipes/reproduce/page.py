"""The page of evidence: prose from page.md, every number and picture of it from the kept figures."""

from __future__ import annotations

import string
from collections import Counter
from pathlib import Path

import tables
from grid import full
from kept import Figures, Kept, read, spread, table, title
from pictures import draw
from tables import last

TEMPLATE = Path(__file__).with_name("page.md")


def write_page(folder: Path, out: Path) -> Path:
    """Writes the page to `out` and its pictures into `folder`, which holds the kept figures."""
    kept = read(folder)
    draw(kept, folder)
    out.write_text(page(kept, folder.name), encoding="utf-8")
    return out


def page(kept: Kept, pictures: str) -> str:
    """The page as Markdown; `pictures` is the folder of the pictures, seen from it."""
    filled = {name: make(kept) for name, make in tables.TABLES.items()}
    filled |= {"ran": ran(kept), "cells": cells(kept), "missing": missing(kept), "pictures": pictures}
    return string.Template(TEMPLATE.read_text(encoding="utf-8")).substitute(filled)


def ran(kept: Kept) -> str:
    """When, on what, for how long."""
    spent, cpu = (hours(kept, name) for name in ("seconds", "cpu_seconds"))
    dates = sorted({cell["measured"]["date"] for cell in kept.cells})
    where = sorted({f"{cell['measured']['machine']}; {cell['measured']['versions']}" for cell in kept.cells})
    when = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    return f"Run {when} on {'; '.join(where)}: {spent:.1f} hours, {cpu:.1f} hours of processor time."


def hours(kept: Kept, name: str) -> float:
    """Of all cells, training and measuring."""
    return float(sum(cell[what][name] for cell in kept.cells for what in ("trained", "measured"))) / 3600


def cells(kept: Kept) -> str:
    """The grid that was run."""

    def row(family: str, found: list[Figures]) -> list[str]:
        probe = found[0]["probe"][last(found[0])]
        loss = spread([cell["series"]["loss"][-1] for cell in found])
        width, rows = probe["sparsity"]["dim"], probe["rows"]
        return [title(family), f"{len(found)}", f"{width}", f"{rows:.0f}", last(found[0]), loss]

    heads = ["cells", "seeds", "width", "tokens with a count", "updates", "loss at the end, nats"]
    return table(heads, [row(family, found) for family, found in kept.families.items()])


def missing(kept: Kept) -> str:
    """The cells of the full grid that have no figures."""
    there = {cell["cell"] for cell in kept.cells}
    absent = Counter(title(cell.family) for cell in full() if cell.name not in there)
    if not absent:
        return "The full grid has been run."
    return (
        f"Of the full grid these have not been run: {', '.join(f'{name} ({seeds})' for name, seeds in absent.items())}."
    )
