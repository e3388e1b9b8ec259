"""Reports on what is saved: the log-linear probe of one output embedding, with everything that it stands against."""

from trainhooks.report.figures import Drift, Figures, FoldFigures, MatrixReport, RankFigures
from trainhooks.report.matrix import report_matrix
from trainhooks.report.source import MatrixSource, open_matrix, read_token_texts, report_source

__all__ = [
    "Drift",
    "Figures",
    "FoldFigures",
    "MatrixReport",
    "MatrixSource",
    "RankFigures",
    "open_matrix",
    "read_token_texts",
    "report_matrix",
    "report_source",
]
