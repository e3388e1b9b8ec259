"""What is taken of a run's matrices: one record after another, against ends that are known beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from trainhooks.lead.change import Change, Matrix
from trainhooks.lead.decomposition import Decomposition, Products, walked
from trainhooks.lead.draws import DRAWS, Columns, draw_labellings, twins_of
from trainhooks.lead.labellings import resampling_weights, singular_basis, unit_labelling
from trainhooks.lead.trajectory import unit_scale

CUT_AT = 0.75
CUT = "cut_"
CUT_PARTS = ("inner", "total")
End = Literal["first", "cut", "last"]
RESAMPLES = 100


@dataclass(frozen=True)
class LeadSums:
    """A run as the analysis of the lead needs it, without its matrices.

    `products` are against the last record, `cut_products` (None without them) of the first records, against that of
    step `cut_step`. `correlation` is the absolute correlation of the targets with the leading direction of change.
    """

    steps: Int[np.ndarray, "record"]
    products: Products
    cut_products: Products | None
    columns: Columns
    dims: int
    correlation: float

    @property
    def cut_step(self) -> int:
        """The step of the record at which the cut run ends; -1 without one."""
        return -1 if self.cut_products is None else int(self.steps[len(self.cut_products.total) - 1])


def cut_index(steps: Sequence[int] | Int[np.ndarray, "record"]) -> int | None:
    """The last record within 3/4 of the run; None where the run up to there has fewer than three records."""
    within = np.flatnonzero(np.asarray(steps) <= steps[0] + CUT_AT * (steps[-1] - steps[0]))
    return int(within[-1]) if len(within) >= 3 else None


class LeadAccumulator:
    """Measures records, one after another, against the run's ends.

    `first`, `last` and `cut` (the last record within 3/4 of the run, None without one) are output embeddings, float32,
    and `ids` the rows of them that count (None: all); `targets` are those rows' (-log frequency). Kept: references to
    the ends, some 900 labellings of the rows, `resamples` bootstrap samples of them. The same settings and matrices
    give the same numbers.

    Raises ValueError for constant targets, and where nothing moved between the ends.
    """

    def __init__(
        self,
        first: Matrix,
        last: Matrix,
        cut: Matrix | None,
        *,
        targets: Float[np.ndarray, "row"],
        ids: Int[np.ndarray, "row"] | None = None,
        draws: int = DRAWS,
        seed: int = 0,
        resamples: int = RESAMPLES,
    ) -> None:
        labelling = unit_labelling(targets)
        ends: dict[str, Any] = {"first": first, "ids": ids, "scale": unit_scale(first, last, ids=ids)}
        change = Change(last, **ends)
        basis = singular_basis(change)
        weights = resampling_weights(len(targets), draws=resamples, rng=np.random.default_rng([seed, 1]))
        columns = draw_labellings(targets, change=change, basis=basis, draws=draws, seed=seed)
        self.columns, self.dims = Columns.of(len(targets), draws=draws), first.shape[1]
        self.correlation = abs(float(basis.coefficients(change, labelling)[0]))
        self._whole = Decomposition(last=last, labellings=columns, weights=weights, **ends)
        self._until_cut = None if cut is None else _until_cut(cut, labelling, draws=draws, seed=seed, **ends)
        self._known: dict[tuple[End | None, int], dict[str, np.ndarray]] = {
            ("first", 0): self._whole.at_first,
            ("last", 0): self._whole.at_last,
        }
        if self._until_cut is not None:
            self._known |= {("first", 1): self._until_cut.at_first, ("cut", 1): self._until_cut.at_last}

    def measure(self, matrix: Matrix, *, within_cut: bool, end: End | None = None) -> dict[str, np.ndarray]:
        """A record's numbers: a row of `Products`; where `within_cut`, inner and total to the cut run's end too.

        `end` says which of the ends the record is, if one: what is known of it is not measured again.
        """
        parts = [self._whole, *([self._until_cut] if within_cut and self._until_cut is not None else [])]
        found = {i: self._known[end, i] for i in range(len(parts)) if (end, i) in self._known}
        asked = [i for i in range(len(parts)) if i not in found]
        walks = walked(self._whole.change_to(matrix), [parts[i] for i in asked]) if asked else []
        found |= {i: parts[i].figures(walk) for i, walk in zip(asked, walks, strict=True)}
        return found[0] | {CUT + name: found[1][name] for name in CUT_PARTS if 1 in found}


def _until_cut(cut: Matrix, labelling: np.ndarray, *, draws: int, seed: int, **ends: Any) -> Decomposition | None:
    """The run up to the cut, with twins of its own; None where nothing has moved by then."""
    change = Change(cut, **ends)
    if not any(block.any() for _, block in change.blocks()):
        return None
    rng = np.random.default_rng([seed, 2])
    twins = twins_of(labelling, change=change, basis=singular_basis(change), draws=draws, rng=rng)
    return Decomposition(last=cut, labellings=twins, **ends)


def gathered(
    steps: Int[np.ndarray, "record"],
    records: Sequence[dict[str, np.ndarray]],
    *,
    columns: Columns,
    dims: int,
    correlation: float,
) -> LeadSums:
    """The reading of records measured by one `LeadAccumulator`, the last of them its `last`."""
    whole = [{name: value for name, value in record.items() if not name.startswith(CUT)} for record in records]
    until_cut = [_cut_record(record) for record in records if CUT + "total" in record]
    return LeadSums(
        steps=steps,
        products=Products.stacked(whole),
        cut_products=Products.stacked(until_cut) if until_cut else None,
        columns=columns,
        dims=dims,
        correlation=correlation,
    )


def _cut_record(record: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The cut run's record; what only the whole run is asked for is left empty."""
    inner, total = (record[CUT + name] for name in CUT_PARTS)
    nothing, none = np.zeros(()), np.empty(0)
    return {
        "inner": inner,
        "square": np.zeros_like(inner),
        "total": total,
        "apart": nothing,
        "resampled_inner": none,
        "resampled_total": none,
    }
