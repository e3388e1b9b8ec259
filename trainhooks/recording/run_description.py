"""What a store says of its run beside the numbers: shapes, counts, texts, where it all comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trainhooks.core.token_counts import TokenCounts
from trainhooks.core.variable import Variable
from trainhooks.metrics.arguments import padded_texts
from trainhooks.metrics.group_convergence import FINAL_VARIABLES
from trainhooks.model.provenance import provenance_of
from trainhooks.numerics.sketch import Sketcher
from trainhooks.recording.tracked_model import TrackedModel
from trainhooks.store import Layout


@dataclass(frozen=True)
class RunDescription:
    """A run's output embedding [vocab, dim] and precision, counts and texts for each of its rows, and provenance."""

    vocab: int
    dim: int
    precision: str | int
    token_count: np.ndarray | None
    token_text: list[str] | None
    provenance: Mapping[str, object]

    @staticmethod
    def of(
        tracked: TrackedModel,
        *,
        counts: TokenCounts | None,
        vocab_size: int | None,
        token_texts: Sequence[str] | None,
        precision: str | int,
        provenance: Mapping[str, object] | None,
    ) -> RunDescription:
        """Of the model that is followed, whose parameters must be readable.

        Raises ValueError for counts and texts that do not fit its rows, and for provenance that is no JSON.
        """
        vocab, dim = tracked.head.weight.shape
        return RunDescription(
            vocab=vocab,
            dim=dim,
            precision=precision,
            provenance=provenance_of(tracked.model, counts, given=provenance),
            token_count=None if counts is None else counts.for_rows(vocab, vocab_size=vocab_size),
            token_text=None if token_texts is None else padded_texts(token_texts, rows=vocab),
        )

    def layout(
        self,
        tracked: TrackedModel,
        sketcher: Sketcher | None,
        *,
        variables: Sequence[Variable],
        attributes: Mapping[str, object],
    ) -> Layout:
        """The store's layout for these variables, with those that need the last record where there are sketches."""
        head = tracked.head
        return Layout(
            vocab=self.vocab,
            dim=self.dim,
            groups=tuple(tracked.groups),
            sketch_size=0 if sketcher is None else sketcher.size,
            variables=(*variables, *(() if sketcher is None else FINAL_VARIABLES)),
            precision=self.precision,
            attributes={**self.provenance, **attributes, "output_embedding": head.name, "tied": head.tied},
            token_count=self.token_count,
            token_text=self.token_text,
        )
