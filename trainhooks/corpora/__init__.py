"""Corpora of any size and form, and the counting of their tokens."""

from trainhooks.corpora.base import LabelRule, Settings
from trainhooks.corpora.belonging import belonging_warnings
from trainhooks.corpora.counting import Report, count_corpus
from trainhooks.corpora.describe import Description, Zipf, describe_counts, kl_divergence
from trainhooks.corpora.loaders import count_loader, counts_of_store
from trainhooks.corpora.opening import open_sources
from trainhooks.corpora.presets import pythia_counts

__all__ = [
    "Description",
    "LabelRule",
    "Report",
    "Settings",
    "Zipf",
    "belonging_warnings",
    "count_corpus",
    "count_loader",
    "counts_of_store",
    "describe_counts",
    "kl_divergence",
    "open_sources",
    "pythia_counts",
]
