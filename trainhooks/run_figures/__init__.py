"""Figures of runs: store(s) in, the numbers of each figure, then pictures with a caption and a CSV beside each."""

from trainhooks.run_figures.draw_all import FIGURES, WrittenFigure, drawings, figures
from trainhooks.run_figures.run_numbers import RunNumbers, read_run, read_runs

__all__ = ["FIGURES", "RunNumbers", "WrittenFigure", "drawings", "figures", "read_run", "read_runs"]
