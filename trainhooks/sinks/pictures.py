"""Pictures of a run for TensorBoard, drawn from records as they come: never in the training thread."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from trainhooks.core.schedule import Schedule
from trainhooks.plots import Drawing, draw, dynamics, saliency, scatter
from trainhooks.plots.dynamics import DISTANCE, walk, walk_away
from trainhooks.probe import frequency_target, token_mask
from trainhooks.sinks import overview
from trainhooks.sinks.base import Record
from trainhooks.store import Layout

logger = logging.getLogger("trainhooks")


class PowersOfFour(Schedule):
    """Fires at 0, 1, 4, 16, 64 ...: TensorBoard shows ten images of a tag, and these reach 65,536."""

    def __call__(self, step: int) -> bool:
        """Whether `step` is 0 or a power of four."""
        return step & (step - 1) == 0 and step & 0x5555_5555_5555_5555 == step

    def __repr__(self) -> str:
        return "PowersOfFour()"


WHEN = PowersOfFour()
"""When pictures are drawn."""
MOST_TOKENS = 2048
"""In a scatter; more are one cloud, and cost time."""
SIZE, DPI = (2.96, 1.6), 250
"""A card of TensorBoard's shows an image small and twice as wide as high. Inches, and dots an inch."""
FROM_START = "distance from start"
_NEEDED = ("probe.heldout_spearman", "probe.permuted_heldout_spearman", "probe.row_norm_spearman")


def can_draw() -> bool:
    """Whether matplotlib is installed; where it is not, say so once."""
    if importlib.util.find_spec("matplotlib") is not None:
        return True
    logger.warning("TensorBoard gets no pictures: matplotlib is not installed (pip install 'trainhooks[figures]').")
    return False


@dataclass
class Pictures:
    """Keeps the few series that a picture of the run so far needs, and draws. What can't be drawn is said once."""

    layout: Layout
    steps: list[int] = field(default_factory=list)
    series: dict[str, list[float]] = field(default_factory=dict)
    _broken: bool = False

    def note(self, step: int, scalars: Mapping[str, float]) -> None:
        """One record's scalars, by tag."""
        self.steps.append(step)
        for tag in (*overview.CURVES, *overview.DISTANCES):
            self.series.setdefault(tag, []).append(scalars.get(tag, np.nan))

    def of(self, record: Record) -> Iterator[tuple[str, np.ndarray]]:
        """Tag and image [height, width, 3] uint8 of what can be drawn of a record."""
        distances = {tag: np.array(self.series[tag]) for tag in overview.DISTANCES if tag in self.series}
        yield from self._dynamics(distances, len(self.steps), y_label=FROM_START)
        if _is_whole(record) and "probe.fold_slope" in record.values and self.layout.token_count is not None:
            yield from self._drawn(overview.SCATTER, lambda: self._scatter(record))
            yield from self._drawn(overview.SALIENCY, lambda: self._saliency(record))

    def last(self, final: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
        """The dynamics of the whole run, whose distances [record] to its end (`final`, by tag) are known now."""
        rows = min((len(values) for values in final.values()), default=0)
        if rows:
            yield from self._dynamics(final, rows, y_label=DISTANCE)

    def _dynamics(
        self, distances: Mapping[str, np.ndarray], rows: int, *, y_label: str
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Correlations and distances up to now: a card each, since a card is small."""
        steps = np.array(self.steps[-rows:])
        held_out, permuted, norm = (np.array(self.series[tag][-rows:]) for tag in overview.CURVES)
        by_group = {tag.rsplit("/", 1)[1].replace("_", " "): values for tag, values in distances.items()}
        between = walk if y_label == DISTANCE else walk_away
        way = between(steps, list(by_group.values())[-1]) if by_group else None
        known: dict[str, Any] = {"null": permuted, "baseline": norm, "random_walk": way}
        drawing = dynamics(steps, {"held out": held_out}, by_group, y_label=y_label, **known)
        tags = {"frequency": overview.FREQUENCY_SO_FAR, "convergence": overview.CONVERGENCE_SO_FAR}
        for panel in drawing.panels:
            yield from self._drawn(tags[panel.title], partial(replace, drawing, panels=(panel,)))

    def _scatter(self, record: Record) -> Drawing:
        matrix, target = self._fitted(record)
        rows = np.flatnonzero(np.isfinite(target))
        rows = rows[:: -(-len(rows) // MOST_TOKENS)]
        slope, intercept = record.values["probe.fold_slope"], record.values["probe.fold_intercept"]
        fold = rows % len(slope)
        predicted = np.einsum("rd,rd->r", matrix[rows], slope[fold]) + intercept[fold]
        held_out, permuted, norm = (float(record.values.get(name, np.nan)) for name in _NEEDED)
        return scatter(target[rows], predicted, spearman=held_out, null=permuted, baseline=norm, step=record.step)

    def _saliency(self, record: Record) -> Drawing:
        matrix, target = self._fitted(record)
        spread = matrix[np.isfinite(target)].std(axis=0, dtype=np.float64)
        return saliency(np.abs(record.values["probe.slope"]) * spread, step=record.step)

    def _fitted(self, record: Record) -> tuple[np.ndarray, np.ndarray]:
        """The matrix, and -log frequency of the rows that the run's probe takes, NaN elsewhere."""
        matrix, counts = record.matrix, self.layout.token_count
        assert matrix is not None
        assert counts is not None
        known = torch.from_numpy(np.array(counts, dtype=np.int64))
        about: Mapping[str, Any] = self.layout.attributes
        mask = token_mask(known, min_count=int(about.get("min_count", 1)), exclude=about.get("excluded_tokens", ()))
        target = frequency_target(known, mask=mask).numpy()
        return matrix, np.where(np.isfinite(matrix).all(axis=1), target, np.nan)

    def _drawn(self, tag: str, make: Callable[[], Drawing]) -> Iterator[tuple[str, np.ndarray]]:
        if self._broken:
            return
        try:
            image = as_image(make())
        except Exception as error:  # a picture is never worth a run
            self._broken = True
            logger.warning("TensorBoard gets no more pictures after step %s: %s", self.steps[-1:], error)
            return
        yield tag, image


def as_image(drawing: Drawing) -> np.ndarray:
    """A drawing as an image [height, width, 3] uint8."""
    figure = draw(drawing)
    figure.set_size_inches(SIZE)
    figure.set_dpi(DPI)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()  # type: ignore[attr-defined]


def _is_whole(record: Record) -> bool:
    return record.snapshot is not None and record.rows is None
