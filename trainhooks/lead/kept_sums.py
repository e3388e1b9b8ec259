"""A reading that was kept record by record, as `trainhooks analyze` keeps it, and put together again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

import numpy as np
from jaxtyping import Int

from trainhooks.lead.decomposition import Products
from trainhooks.lead.draws import Columns
from trainhooks.lead.lead_sums import CUT, CUT_PARTS, RESAMPLES, LeadSums

LABELLING, CUT_LABELLING, SAMPLE = "lead_labelling", "lead_cut_labelling", "lead_sample"
_T = "D the change since the first record, T the final one"
VALUES: Mapping[str, tuple[tuple[str, ...], str]] = {
    "lead.inner": ((LABELLING,), f"<b(t), b(T)>, b = D'y for each labelling y: frequency, its nulls; {_T}"),
    "lead.square": ((LABELLING,), "|b(t)|^2 for each labelling"),
    "lead.total": ((), f"<D(t), D(T)>, {_T}"),
    "lead.apart": ((), "|D(t) - D(T)|^2"),
    "lead.resampled_inner": ((SAMPLE,), "lead.inner of frequency in each bootstrap sample of the tokens"),
    "lead.resampled_total": ((SAMPLE,), "lead.total in each bootstrap sample of the tokens"),
    "lead.cut_inner": ((CUT_LABELLING,), "lead.inner where T is the record at 3/4 of the way, up to there"),
    "lead.cut_total": ((), "lead.total where T is the record at 3/4 of the way, up to there"),
    "lead.cut_step": ((), "step of the record at 3/4 of the way, repeated"),
    "lead.correlation": ((), "|corr| of frequency with the main direction of the whole change, repeated"),
}


def lead_sizes(columns: Columns) -> Mapping[str, int]:
    """The lengths of the dimensions of `VALUES`."""
    return {LABELLING: columns.ranks.stop, CUT_LABELLING: columns.targets.stop, SAMPLE: RESAMPLES}


def kept_reading(
    values: Mapping[str, np.ndarray], *, steps: Int[np.ndarray, "record"], rows: int, dims: int
) -> LeadSums:
    """The reading of records kept under the names of `VALUES`, the last of them the run's last.

    Raises ValueError where a record has none, which says that its matrix was not finite or far beyond both ends, and
    where another record is the last.
    """
    without = steps[~np.isfinite(values["lead.inner"]).all(axis=1)]
    if len(without):
        raise ValueError(
            f"no lead could be measured at steps {without[:8].tolist()}: nothing moved between the ends, counts are "
            "constant, or the output embedding there is not finite or far beyond both ends. Leave those out."
        )
    products = Products(**{field.name: values[f"lead.{field.name}"] for field in fields(Products)})
    if not products.apart[-1] <= 1e-6 * products.total[-1]:
        raise ValueError("the last record is not the final state that the others were measured against; finish it.")
    columns = Columns.of(rows)
    return LeadSums(steps, products, _cut(values, steps), columns, dims, float(values["lead.correlation"][0]))


def _cut(values: Mapping[str, np.ndarray], steps: np.ndarray) -> Products | None:
    """The cut run, where the record that it ends at is among them."""
    at = np.flatnonzero(steps == values["lead.cut_step"][0])
    if len(at) == 0 or at[0] < 2:
        return None
    inner, total = (values[f"lead.{CUT}{part}"][: at[0] + 1] for part in CUT_PARTS)
    if not np.isfinite(inner).all():
        return None
    none = np.empty((len(total), 0))
    return Products(inner, np.zeros_like(inner), total, np.zeros_like(total), none, none)
