"""From a run's series to onsets, the lead and the nulls it must beat. Numpy and scipy only."""

from trainhooks.convergence.learning_rate import Placement, place
from trainhooks.convergence.onset import Onset, Series, onset, series_onset, settled_from
from trainhooks.convergence.run import RunAnalysis, analyze_run
from trainhooks.convergence.trajectory import (
    ArrayTrajectory,
    StraightLine,
    Trajectory,
    random_walk,
    thinned,
)

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
    "place",
    "random_walk",
    "series_onset",
    "settled_from",
    "thinned",
]
