"""Instrumentation for the training dynamics of language models.

`Recorder` goes into a training loop; `open_store` reads what it kept. Integrations for Lightning and the
HF Trainer are in `trainhooks.integrations` and are imported from there, so that this package needs neither.
"""

from typing import TYPE_CHECKING

from trainhooks.core import accessors, former
from trainhooks.core.former_names import TABLE
from trainhooks.core.lazy import lazy_names

if TYPE_CHECKING:
    from trainhooks.analyze.average_probability import AverageProbabilityResult, average_probability
    from trainhooks.analyze.run import analyze_suite
    from trainhooks.analyze.several import analyze_suites
    from trainhooks.checkpoints.audit.audit import audit_suite
    from trainhooks.checkpoints.suite import list_suite
    from trainhooks.core.schedule import Every, EveryStep, LogSpaced, Schedule, Steps, Thinned
    from trainhooks.core.token_counts import TokenCounts
    from trainhooks.core.variable import Variable
    from trainhooks.corpora.counting import count_corpus
    from trainhooks.html_report.write import write_report
    from trainhooks.lead.from_store import analyze_store
    from trainhooks.lead.verdict import verdict
    from trainhooks.metrics.base import Metric, State
    from trainhooks.metrics.covariate_baseline import CovariateBaseline
    from trainhooks.metrics.defaults import default_metrics
    from trainhooks.metrics.exact_convergence import ExactConvergence
    from trainhooks.metrics.frequency_probe import FrequencyProbe
    from trainhooks.metrics.geometry import HeadGeometry
    from trainhooks.metrics.group_convergence import GroupConvergence
    from trainhooks.metrics.lead_parts import LeadParts
    from trainhooks.metrics.probability_probe import ProbabilityProbe
    from trainhooks.metrics.spectrum import Spectrum
    from trainhooks.model import OutputEmbedding, find_output_embedding
    from trainhooks.probe import ProbeFit, RowSelection, fit_probe
    from trainhooks.recording.budget import Budget
    from trainhooks.recording.plan import Plan
    from trainhooks.recording.recorder import Recorder
    from trainhooks.recording.timing import Cost
    from trainhooks.run_figures.draw_all import figures
    from trainhooks.sinks import JsonLinesSink, LoggerSink, MemorySink, Record, Sink, StoreSink, TensorBoardSink
    from trainhooks.store import Store, Writing, open_store
    from trainhooks.store.errors import StoreError
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        renamed={"AverageProbability": "AverageProbabilityResult"},
        homes={
            "trainhooks.analyze.average_probability": "AverageProbabilityResult average_probability",
            "trainhooks.analyze.run": "analyze_suite",
            "trainhooks.analyze.several": "analyze_suites",
            "trainhooks.checkpoints.audit.audit": "audit_suite",
            "trainhooks.checkpoints.suite": "list_suite",
            "trainhooks.core.schedule": "Every EveryStep LogSpaced Schedule Steps Thinned",
            "trainhooks.core.token_counts": "TokenCounts",
            "trainhooks.core.variable": "Variable",
            "trainhooks.corpora.counting": "count_corpus",
            "trainhooks.html_report.write": "write_report",
            "trainhooks.lead.from_store": "analyze_store",
            "trainhooks.lead.verdict": "verdict",
            "trainhooks.metrics.base": "Metric State",
            "trainhooks.metrics.covariate_baseline": "CovariateBaseline",
            "trainhooks.metrics.defaults": "default_metrics",
            "trainhooks.metrics.exact_convergence": "ExactConvergence",
            "trainhooks.metrics.frequency_probe": "FrequencyProbe",
            "trainhooks.metrics.geometry": "HeadGeometry",
            "trainhooks.metrics.group_convergence": "GroupConvergence",
            "trainhooks.metrics.lead_parts": "LeadParts",
            "trainhooks.metrics.probability_probe": "ProbabilityProbe",
            "trainhooks.metrics.spectrum": "Spectrum",
            "trainhooks.model": "OutputEmbedding find_output_embedding",
            "trainhooks.probe": "ProbeFit RowSelection fit_probe",
            "trainhooks.recording.budget": "Budget",
            "trainhooks.recording.plan": "Plan",
            "trainhooks.recording.recorder": "Recorder",
            "trainhooks.recording.timing": "Cost",
            "trainhooks.run_figures.draw_all": "figures",
            "trainhooks.sinks": "JsonLinesSink LoggerSink MemorySink Record Sink StoreSink TensorBoardSink",
            "trainhooks.store": "Store Writing open_store",
            "trainhooks.store.errors": "StoreError",
        },
    )

__version__ = "0.1.0"

accessors.register("plot", home="trainhooks.run_figures.store_plots:StorePlots")
former.install(former.read_table(TABLE, package=__name__))

__all__ = [
    "AverageProbabilityResult",
    "Budget",
    "Cost",
    "CovariateBaseline",
    "Every",
    "EveryStep",
    "ExactConvergence",
    "FrequencyProbe",
    "GroupConvergence",
    "HeadGeometry",
    "JsonLinesSink",
    "LeadParts",
    "LogSpaced",
    "LoggerSink",
    "MemorySink",
    "Metric",
    "OutputEmbedding",
    "Plan",
    "ProbabilityProbe",
    "ProbeFit",
    "Record",
    "Recorder",
    "RowSelection",
    "Schedule",
    "Sink",
    "Spectrum",
    "State",
    "Steps",
    "Store",
    "StoreError",
    "StoreSink",
    "TensorBoardSink",
    "Thinned",
    "TokenCounts",
    "Variable",
    "Writing",
    "analyze_store",
    "analyze_suite",
    "analyze_suites",
    "audit_suite",
    "average_probability",
    "count_corpus",
    "default_metrics",
    "figures",
    "find_output_embedding",
    "fit_probe",
    "list_suite",
    "open_store",
    "verdict",
    "write_report",
]
