"""What a store says of its run beside the numbers: shapes, counts, texts, where it all comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trainhooks.core.schedule import Schedule, in_words
from trainhooks.core.token_counts import TokenCounts
from trainhooks.core.variable import Variable
from trainhooks.metrics.arguments import checked_counts, checked_rows, known_of_counts, padded_texts
from trainhooks.metrics.group_convergence import FINAL_VARIABLES
from trainhooks.metrics.record_info import RECORD_VARIABLES
from trainhooks.model.provenance import provenance_of
from trainhooks.numerics.sketch import Sketcher
from trainhooks.probe.row_selection import RowSelection
from trainhooks.recording.tracked_model import TrackedModel
from trainhooks.store import Layout


@dataclass(frozen=True)
class RunDescription:
    """A run's output embedding [vocab, dim] and precision, its rows, their texts, and attributes."""

    vocab: int
    dim: int
    precision: str | int
    rows: RowSelection | None
    token_text: list[str] | None
    attributes: Mapping[str, object]

    @property
    def token_count(self) -> np.ndarray | None:
        """Corpus counts for each row; None where there are none."""
        return None if self.rows is None or self.rows.counts is None else self.rows.counts.numpy()

    @staticmethod
    def of(
        tracked: TrackedModel,
        *,
        counts: TokenCounts | np.ndarray | RowSelection | None,
        vocab_size: int | None,
        min_count: int,
        exclude: Sequence[int],
        metrics_given: bool,
        token_texts: Sequence[str] | None,
        precision: str | int,
        provenance: Mapping[str, object] | None,
    ) -> RunDescription:
        """Of the model that is followed, whose parameters must be readable.

        Raises ValueError for counts, settings and texts that do not fit its rows, for settings of rows beside metrics,
        and for provenance that is no JSON.
        """
        vocab, dim = tracked.head.weight.shape
        checked = checked_counts(counts)
        rows, settings = checked_rows(
            checked,
            vocab=vocab,
            vocab_size=vocab_size,
            min_count=min_count,
            exclude=exclude,
            metrics_given=metrics_given,
        )
        return RunDescription(
            vocab=vocab,
            dim=dim,
            precision=precision,
            attributes={**provenance_of(tracked.model, known_of_counts(checked), given=provenance), **settings},
            rows=rows,
            token_text=None if token_texts is None else padded_texts(token_texts, rows=vocab),
        )

    def layout(
        self,
        tracked: TrackedModel,
        sketcher: Sketcher | None,
        *,
        variables: Sequence[Variable],
        schedules: Mapping[str, Schedule],
    ) -> Layout:
        """The store's layout: the record's own variables, these, and with sketches what needs the last record.

        `schedules` by what they are of are among the attributes, in words, unless provenance has that name already.
        """
        head = tracked.head
        return Layout(
            vocab=self.vocab,
            dim=self.dim,
            groups=tuple(tracked.groups),
            sketch_size=0 if sketcher is None else sketcher.size,
            variables=(*RECORD_VARIABLES, *variables, *(() if sketcher is None else FINAL_VARIABLES)),
            precision=self.precision,
            attributes={
                "schedules": {what: in_words(schedule) for what, schedule in schedules.items()},
                **self.attributes,
                "output_embedding": head.name,
                "tied": head.tied,
            },
            token_count=self.token_count,
            token_text=self.token_text,
        )
