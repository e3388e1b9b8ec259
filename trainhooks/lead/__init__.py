"""From a run's series to onsets, the lead and the nulls it must beat. Numpy and scipy only."""

from trainhooks.lead.learning_rate import Placement, placement_of
from trainhooks.lead.onset import Onset, Series, onset, series_onset, settled_from
from trainhooks.lead.run_analysis import RunAnalysis, analyze_run
from trainhooks.lead.trajectory import ArrayTrajectory, StraightLine, Trajectory, random_walk, thinned

__all__ = [
    "ArrayTrajectory",
    "Onset",
    "Placement",
    "RunAnalysis",
    "Series",
    "StraightLine",
    "Trajectory",
    "analyze_run",
    "onset",
    "placement_of",
    "random_walk",
    "series_onset",
    "settled_from",
    "thinned",
]
