"""Reports on what is saved: the log-linear probe of one output embedding, with everything that it stands against."""

from trainhooks.corpora.tokenizers import read_token_texts
from trainhooks.probe_report.figures import Drift, Figures, FoldFigures, RankFigures
from trainhooks.probe_report.matrix import report_matrix
from trainhooks.probe_report.report import MatrixReport
from trainhooks.probe_report.source import MatrixSource, open_matrix, report_source

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
