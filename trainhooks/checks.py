"""A recorder's arguments, checked before anything runs."""

from __future__ import annotations

from collections.abc import Sequence

from trainhooks.metrics.base import Metric
from trainhooks.references import NEEDS
from trainhooks.schedule import Schedule
from trainhooks.variable import Variable


def check_length(total_steps: int | None) -> None:
    """Raises ValueError where the run's length is no whole number of 1 or more."""
    if total_steps is not None and (not isinstance(total_steps, int) or total_steps < 1):
        raise ValueError(f"total_steps is {total_steps!r}; needed a whole number of 1 or more, or None.")


def check_schedule(schedule: object, *, what: str) -> None:
    """Raises ValueError for what is no schedule; None is one."""
    if schedule is not None and not isinstance(schedule, Schedule):
        raise ValueError(f"{what} is {schedule!r}; pass a schedule, such as th.Every(10) or th.Steps([0, 5]).")


def padded_texts(texts: Sequence[str], *, rows: int) -> list[str]:
    """A text for each row; padding rows have none. Raises ValueError where there are more texts than rows."""
    if not all(isinstance(text, str) for text in texts):
        odd = next(index for index, text in enumerate(texts) if not isinstance(text, str))
        raise ValueError(f'token_texts[{odd}] is {texts[odd]!r}; every id needs a text, "" where it has none.')
    if len(texts) > rows:
        raise ValueError(f"token_texts has {len(texts)} entries; the output embedding has {rows} rows.")
    return [*texts, *([""] * (rows - len(texts)))]


def checked_metrics(metrics: Sequence[Metric], *, own: Sequence[Variable]) -> list[Metric]:
    """The metrics, if they can be recorded together beside the recorder's `own` variables.

    Raises ValueError for what is no instance, for variables declared twice, and for unknown needs.
    """
    for metric in metrics:
        if not isinstance(metric, Metric):
            raise ValueError(f"metrics takes instances of th.Metric, got {metric!r}: call the class to make one.")
    names = [variable.name for metric in metrics for variable in metric.variables]
    names += [variable.name for variable in own]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"variables declared more than once: {', '.join(twice)}. Rename them or pass one metric.")
    for metric in metrics:
        if unknown := metric.needs - NEEDS:
            raise ValueError(f"{type(metric).__name__} needs {sorted(unknown)}; a recorder can keep {sorted(NEEDS)}.")
    return list(metrics)
