"""The report on one output embedding: its figures, and their text."""

from __future__ import annotations

from trainhooks.probe_report.figures import MatrixFigures
from trainhooks.probe_report.render import render_report


class MatrixReport(MatrixFigures):
    """The figures of one output embedding, each beside its null or baseline; see `MatrixFigures` for what they are."""

    def render(self) -> str:
        """The report as plain text; a figure that is not defined is "-"."""
        return render_report(self)
