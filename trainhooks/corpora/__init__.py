"""Corpora of any size and form, and the counting of their tokens."""

from typing import TYPE_CHECKING

from trainhooks.core.lazy import lazy_names

if TYPE_CHECKING:
    from trainhooks.corpora.base import LabelRule, Settings
    from trainhooks.corpora.counting import Report, count_corpus
    from trainhooks.corpora.describe import Description, Zipf, describe_counts, kl_divergence
    from trainhooks.corpora.loaders import count_loader, counts_of_store
    from trainhooks.corpora.presets import pythia_counts
    from trainhooks.corpora.sources import open_sources
    from trainhooks.corpora.tokenizer_match import belonging_warnings
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "trainhooks.corpora.base": "LabelRule Settings",
            "trainhooks.corpora.tokenizer_match": "belonging_warnings",
            "trainhooks.corpora.counting": "Report count_corpus",
            "trainhooks.corpora.describe": "Description Zipf describe_counts kl_divergence",
            "trainhooks.corpora.loaders": "count_loader counts_of_store",
            "trainhooks.corpora.sources": "open_sources",
            "trainhooks.corpora.presets": "pythia_counts",
        },
    )

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
