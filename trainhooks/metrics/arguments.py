"""A recorder's arguments, checked before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from trainhooks.core.schedule import check_schedule
from trainhooks.core.token_counts import TokenCounts
from trainhooks.core.variable import Variable
from trainhooks.metrics.base import NEEDS, Metric
from trainhooks.probe.row_selection import RowSelection, rows_of_matrix


def checked_counts(counts: object) -> TokenCounts | RowSelection | None:
    """Counts as `TokenCounts`; None and a `RowSelection` stay. Raises ValueError for all but NumPy arrays."""
    if isinstance(counts, np.ndarray):
        return TokenCounts(counts)
    if counts is not None and not isinstance(counts, TokenCounts | RowSelection):
        raise ValueError(
            f"counts is a {type(counts).__name__}; pass th.TokenCounts, or a NumPy array with a count for each id."
        )
    return counts


def known_of_counts(counts: TokenCounts | RowSelection | None) -> TokenCounts | None:
    """The counts with what is known of them, those of a selection included."""
    return counts.token_counts if isinstance(counts, RowSelection) else counts


def checked_rows(
    counts: TokenCounts | RowSelection | None,
    *,
    vocab: int,
    vocab_size: int | None,
    min_count: int,
    exclude: Sequence[int],
    metrics_given: bool,
) -> tuple[RowSelection | None, dict[str, object]]:
    """The rows of the default metrics, one count for each of `vocab`, and their settings for the store's attributes.

    No rows without counts, no settings where metrics are given. Raises ValueError where settings are given as well as
    metrics, which would not follow them, and for counts and settings that do not fit.
    """
    if metrics_given:
        _refuse_beside_metrics(min_count=min_count, exclude=exclude)
    rows = None
    if counts is not None:
        rows = rows_of_matrix(counts, vocab=vocab, min_count=min_count, exclude=exclude, vocab_size=vocab_size)
        min_count, exclude = rows.min_count, rows.exclude
    return rows, {} if metrics_given else {"min_count": min_count, "excluded_tokens": [int(token) for token in exclude]}


def _refuse_beside_metrics(*, min_count: int, exclude: Sequence[int]) -> None:
    given = {"min_count": min_count, "exclude": list(exclude)}
    if ignored := [name for name, plain in (("min_count", 1), ("exclude", [])) if given[name] != plain]:
        raise ValueError(
            f"{' and '.join(ignored)} beside metrics: a metric that is given has rows of its own. Pass "
            f"{' and '.join(f'{name}={given[name]!r}' for name in ignored)} to each metric (or to th.default_metrics), "
            "not to the recorder."
        )


def padded_texts(texts: Sequence[str], *, rows: int) -> list[str]:
    """A text for each row; padding rows have none. Raises ValueError where there are more texts than rows."""
    if not all(isinstance(text, str) for text in texts):
        odd = next(index for index, text in enumerate(texts) if not isinstance(text, str))
        raise ValueError(f'token_texts[{odd}] is {texts[odd]!r}; every id needs a text, "" where it has none.')
    if len(texts) > rows:
        raise ValueError(f"token_texts has {len(texts)} entries; the output embedding has {rows} rows.")
    return [*texts, *([""] * (rows - len(texts)))]


def checked_metrics(metrics: Sequence[Any], *, own: Sequence[Variable]) -> list[Metric]:
    """The metrics, if they can be recorded together beside the recorder's `own` variables.

    Raises ValueError for what is no instance, for a schedule that is none, for variables declared twice, and for
    unknown needs.
    """
    for metric in metrics:
        if not isinstance(metric, Metric):
            raise ValueError(f"metrics takes instances of th.Metric, got {metric!r}: call the class to make one.")
        if not callable(metric.schedule):  # a function of the step has always done
            check_schedule(f"the schedule of {type(metric).__name__}", metric.schedule)
    names = [variable.name for metric in metrics for variable in metric.variables]
    names += [variable.name for variable in own]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"variables declared more than once: {', '.join(twice)}. Rename them or pass one metric.")
    for metric in metrics:
        if unknown := metric.needs - NEEDS:
            raise ValueError(f"{type(metric).__name__} needs {sorted(unknown)}; a recorder can keep {sorted(NEEDS)}.")
    return list(metrics)
