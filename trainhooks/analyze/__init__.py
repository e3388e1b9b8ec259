"""The offline analyzer: a checkpoint suite in, a trajectory out."""

from trainhooks.analyze.report import AnalysisReport
from trainhooks.analyze.run import analyze_suite
from trainhooks.analyze.several import SuitesReport, analyze_suites

analyze = analyze_suite

__all__ = ["AnalysisReport", "SuitesReport", "analyze", "analyze_suite", "analyze_suites"]
