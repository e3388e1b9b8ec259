"""The offline analyzer: a checkpoint suite in, a trajectory out."""

from trainhooks.analyze.report import AnalysisReport
from trainhooks.analyze.run import analyze_suite

analyze = analyze_suite

__all__ = ["AnalysisReport", "analyze", "analyze_suite"]
