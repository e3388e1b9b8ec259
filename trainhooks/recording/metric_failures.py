"""A metric that raises: reported once, with the step, and left out from there, so that training goes on."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from trainhooks.core.errors import SettingsError
from trainhooks.metrics.base import Metric
from trainhooks.model.distributed import RankGroup


class Faults:
    """Which metrics have raised. `strict` lets errors through; so does a metric that several ranks compute together.

    There one rank alone may have failed, and the others would wait for it in a collective.
    """

    def __init__(self, *, strict: bool, ranks: RankGroup) -> None:
        self.strict, self._ranks = strict, ranks
        self._failed: list[Metric] = []

    def has(self, metric: Metric) -> bool:
        """Whether this one has raised."""
        return any(metric is failed for failed in self._failed)

    @contextmanager
    def of(self, metric: Metric, *, step: int) -> Iterator[None]:
        """Inside, an error of the metric is said, and it counts as failed; settings that do not fit are raised."""
        try:
            yield
        except SettingsError:
            raise
        except Exception as error:
            together = self._ranks.sharded or "hidden" in metric.needs
            if self.strict or (together and not self._ranks.is_single):
                raise
            self._failed.append(metric)
            warnings.warn(
                f"step {step}: {type(metric).__name__} raised {type(error).__name__}: {error}. Its values are NaN from "
                "here on, and training goes on; Recorder(strict=True) stops there (said once).",
                RuntimeWarning,
                stacklevel=6,
            )
