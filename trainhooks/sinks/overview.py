"""What TensorBoard shows first: the few curves that answer, under tags that stand before all others, and a layout.

Is frequency in the output embedding yet, beside its null and its baseline; have the whole model and the head arrived;
what does it cost. The tags `trainhooks/family/quantity` stay what they are; these are a second, short row of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from trainhooks.sinks.base import Record
from trainhooks.sinks.host_tags import PREFIX

FAMILY = "overview"
HELD_OUT, PERMUTED, ROW_NORM = (
    "probe/heldout_spearman",
    "probe/permuted_heldout_spearman",
    "probe/row_norm_spearman",
)
FROM_START, TO_END = "convergence/distance_to_initial", "convergence/distance_to_final"
WHOLE, HEAD = "whole", "output_embedding"
CURVES = (HELD_OUT, PERMUTED, ROW_NORM)
DISTANCES = (f"{FROM_START}/{WHOLE}", f"{FROM_START}/{HEAD}")
_ROWS = {
    HELD_OUT: "1 frequency, held-out Spearman",
    PERMUTED: "2 its null, permuted targets",
    ROW_NORM: "3 its baseline, row norm alone",
    f"{FROM_START}/{WHOLE}": "4 distance from start, whole model",
    f"{FROM_START}/{HEAD}": "5 distance from start, output embedding",
    f"{TO_END}/{WHOLE}": "6 distance to end, whole model",
    f"{TO_END}/{HEAD}": "7 distance to end, output embedding",
    "loss": "8 loss, nats a token",
    "recorder/milliseconds": "9 own cost, ms since the last record",
}
FREQUENCY_SO_FAR, CONVERGENCE_SO_FAR, SCATTER, SALIENCY = (
    f"{FAMILY}/0 frequency, beside its null and its baseline",
    f"{FAMILY}/0 has the rest converged",
    f"{FAMILY}/probe, predicted against true",
    f"{FAMILY}/probe, which dimensions it uses",
)
"""Tags of the images."""
NORMS = f"{FAMILY}/norms of the rows"
QUIET = frozenset({"skipped", "nonfinite_rows", "probe/excluded_rows", "probe/rank", "probe/null_r2"})
"""Constant where all is well: drawn from the first record on at which they are not what they were."""
LAYERS_A_CHART = 8


def overview(scalars: Mapping[str, float]) -> dict[str, float]:
    """The rows of the overview that a record's scalars have: tag -> number."""
    return {f"{FAMILY}/{name}": scalars[tag] for tag, name in _ROWS.items() if tag in scalars}


class Quiet:
    """Leaves out of each record's scalars what is in `QUIET` and has not changed since the first."""

    def __init__(self) -> None:
        self._first: dict[str, float] = {}
        self._heard: set[str] = set()

    def of(self, record: Record) -> dict[str, float]:
        """What is drawn of a record."""
        return {tag: number for tag, number in record.scalars.items() if self._speaks(tag, number)}

    def _speaks(self, tag: str, number: float) -> bool:
        if tag not in QUIET or tag in self._heard:
            return True
        if number == self._first.setdefault(tag, 0.0 if tag in ("skipped", "nonfinite_rows") else number):
            return False
        self._heard.add(tag)
        return True


def layout(groups: Sequence[str]) -> dict[str, dict[str, tuple[str, list[str]]]]:
    """Charts for the dashboard Custom Scalars: category -> title -> (kind, tags), as `add_custom_scalars` takes it."""
    ends = [f"{part}/{group}" for part in (FROM_START, TO_END) for group in (WHOLE, HEAD)]
    first = {
        "frequency beside its null and its baseline": _lines([HELD_OUT, PERMUTED, ROW_NORM]),
        "frequency and convergence": _lines([HELD_OUT, PERMUTED, *ends]),
        "loss": _lines(["loss"]),
    }
    by_group: dict[str, tuple[str, list[str]]] = {}
    for what, quantity in (
        ("distance from start", FROM_START),
        ("step size", "convergence/relative_step"),
        ("distance to end", TO_END),
    ):
        for part, some in _charts(groups).items():
            by_group[f"{what}: {part}"] = _lines([f"{quantity}/{group}" for group in some])
    cost = {"own cost, ms since the last record": _lines(["recorder/milliseconds"])}
    return {
        "Is frequency there yet, and has the rest converged?": first,
        "Convergence by group": by_group,
        "Own cost": cost,
    }


def _charts(groups: Iterable[str]) -> dict[str, list[str]]:
    """Groups that are no layers on one chart, layers by eights on others."""
    layers = [group for group in groups if group.startswith("layers.")]
    charts = {"model and ends": [group for group in groups if not group.startswith("layers.")]}
    for start in range(0, len(layers), LAYERS_A_CHART):
        some = layers[start : start + LAYERS_A_CHART]
        charts[some[0] if len(some) == 1 else f"{some[0]} to {some[-1]}"] = some
    return {title: some for title, some in charts.items() if some}


def _lines(tags: Sequence[str]) -> tuple[str, list[str]]:
    return "Multiline", [PREFIX + tag for tag in tags]
