"""Instrumentation for the training dynamics of language models.

`Recorder` goes into a training loop; `open_store` reads what it kept. Integrations for Lightning and the
HF Trainer are in `trainhooks.integrations` and are imported from there, so that this package needs neither.
"""

from typing import TYPE_CHECKING

from trainhooks.core.lazy import lazy_names

if TYPE_CHECKING:
    from trainhooks.analyze.average_probability import AverageProbabilityResult, average_probability
    from trainhooks.core.schedule import Every, EveryStep, LogSpaced, Schedule, Steps
    from trainhooks.core.token_counts import TokenCounts
    from trainhooks.core.variable import Variable
    from trainhooks.metrics.base import Metric, State
    from trainhooks.metrics.covariate_baseline import CovariateBaseline
    from trainhooks.metrics.defaults import default_metrics
    from trainhooks.metrics.exact_convergence import ExactConvergence
    from trainhooks.metrics.lead_parts import LeadParts
    from trainhooks.metrics.probability_probe import ProbabilityProbe
    from trainhooks.model import OutputEmbedding, find_output_embedding
    from trainhooks.probe import ProbeFit, fit_probe
    from trainhooks.recording.recorder import Recorder
    from trainhooks.sinks import JsonLinesSink, MemorySink, Record, Sink, StoreSink, TensorBoardSink
    from trainhooks.store import Store, Writing, open_store
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        renamed={"AverageProbability": "AverageProbabilityResult"},
        homes={
            "trainhooks.metrics.base": "Metric State",
            "trainhooks.metrics.covariate_baseline": "CovariateBaseline",
            "trainhooks.metrics.defaults": "default_metrics",
            "trainhooks.metrics.exact_convergence": "ExactConvergence",
            "trainhooks.metrics.lead_parts": "LeadParts",
            "trainhooks.metrics.probability_probe": "ProbabilityProbe",
            "trainhooks.model": "OutputEmbedding find_output_embedding",
            "trainhooks.analyze.average_probability": "AverageProbabilityResult average_probability",
            "trainhooks.probe": "ProbeFit fit_probe",
            "trainhooks.recording.recorder": "Recorder",
            "trainhooks.core.schedule": "Every EveryStep LogSpaced Schedule Steps",
            "trainhooks.sinks": "JsonLinesSink MemorySink Record Sink StoreSink TensorBoardSink",
            "trainhooks.store": "Store Writing open_store",
            "trainhooks.core.token_counts": "TokenCounts",
            "trainhooks.core.variable": "Variable",
        },
    )

__version__ = "0.1.0"

__all__ = [
    "AverageProbabilityResult",
    "CovariateBaseline",
    "Every",
    "EveryStep",
    "ExactConvergence",
    "JsonLinesSink",
    "LeadParts",
    "LogSpaced",
    "MemorySink",
    "Metric",
    "OutputEmbedding",
    "ProbabilityProbe",
    "ProbeFit",
    "Record",
    "Recorder",
    "Schedule",
    "Sink",
    "State",
    "Steps",
    "Store",
    "StoreSink",
    "TensorBoardSink",
    "TokenCounts",
    "Variable",
    "Writing",
    "average_probability",
    "default_metrics",
    "find_output_embedding",
    "fit_probe",
    "open_store",
]
