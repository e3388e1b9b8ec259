"""What TensorBoard's tab Text says of a run: how to read the screen, where the run comes from. Markdown, escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from trainhooks.core.printable import shown
from trainhooks.store import Layout

HOW_TO_READ, PROVENANCE, VERDICT = "overview/how to read this", "overview/provenance", "overview/verdict"
_MARKS = re.compile(r"([\\`*_{}\[\]<>()#+\-.!|~&])")
_LONGEST = 300

_READING = """\
**Is frequency there yet?** `overview/1` is how well the output embedding predicts each token's -log frequency, on
tokens that the fit has not seen (Spearman, 1 is perfect). It means something where it stands well above `overview/2`,
the same with the frequencies permuted over tokens (near 0), and above `overview/3`, what the rows' norm alone tells.

**Has the rest converged?** `overview/4` and `5` are the distance from the first state, over its norm, of the whole
model and of the output embedding: flat means arrived. `overview/6` and `7`, the distance to the last state, come when
the run has ended.

Both on one chart: the dashboard *Custom Scalars*, where the groups of layers have a chart each as well. All figures:
`trainhooks/family/quantity`. What the run allows to be said: `trainhooks verdict STORE`.
"""


def run_texts(layout: Layout) -> dict[str, str]:
    """By tag, the texts that are known when a run begins."""
    about = {
        "output embedding": f"{layout.vocab} x {layout.dim}",
        "parameter groups": ", ".join(layout.groups),
        "precision": layout.precision,
        **layout.attributes,
    }
    return {HOW_TO_READ: _READING, PROVENANCE: table(about)}


def table(rows: Mapping[str, object]) -> str:
    """Names and values as a table of Markdown; both are text from files, so nothing in them is markup."""
    lines = [f"| {plain(name)} | {plain(value)} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def block(lines: Iterable[str]) -> str:
    """Lines of ours, such as a report's, as they stand: a code block of Markdown."""
    return "\n".join(f"    {shown(line)}" for line in lines)


def plain(value: object) -> str:
    """One line of text in which nothing is markup, and which is not endless."""
    text = shown(value)
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
    return _MARKS.sub(r"\\\1", text)
