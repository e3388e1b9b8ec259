"""How far each parameter group has moved since the start, since the last record, and from the end of the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from trainhooks.core.schedule import Schedule
from trainhooks.core.variable import Variable
from trainhooks.metrics.base import Metric, State
from trainhooks.model.distributed import RankGroup
from trainhooks.numerics.norms import accumulator, group_norms, ratio
from trainhooks.numerics.sketch import cosine, distance
from trainhooks.store import Store

RECORDS_AT_ONCE = 64
MOST_GROUPS = 64  # usual models have a dozen; more wait with fewer other records
_PART = " convergence."  # no variable's name: these travel from a device with a record's values
ESTIMATE = (
    "estimated from sign sketches of k buckets, the norm divided by being exact: relative standard error of a distance "
    "1/sqrt(2k) (2.2% for 1021), standard error of a cosine (1 - cos^2)/sqrt(k)"
)


def _per_group(name: str, text: str, *, whole_run: bool = False) -> Variable:
    return Variable(f"convergence.{name}", dims=("group",), description=f"{text}; {ESTIMATE}", whole_run=whole_run)


LIVE_VARIABLES = (
    Variable("convergence.norm", dims=("group",), description="Euclidean norm of the group's parameters, exact"),
    _per_group("relative_step", "|theta_t - theta_s| / |theta_t|, s the previous record; NaN at the first record"),
    _per_group(
        "step_per_learning_rate",
        "relative_step over the sum of the learning rates between the two records; NaN where that is unknown or 0",
    ),
    _per_group("cosine_to_previous", "cos(theta_t, theta_s), s the previous record; NaN at the first record"),
    _per_group("distance_to_initial", "|theta_t - theta_0| / |theta_0|; NaN where the group starts at 0"),
    _per_group("cosine_to_initial", "cos(theta_t, theta_0); NaN where the group is or starts at 0"),
)

HORIZON = "depends on run length and schedule"
FINAL_VARIABLES = (
    _per_group("distance_to_final", f"|theta_t - theta_T| / |theta_T|; {HORIZON}", whole_run=True),
    _per_group(
        "unit_distance_to_final",
        f"distance of theta_t / |theta_t| and theta_T / |theta_T|, in [0, 2]; {HORIZON}",
        whole_run=True,
    ),
    _per_group("cosine_to_final", f"cos(theta_t, theta_T); {HORIZON}", whole_run=True),
    _per_group(
        "log_lag_cosine",
        "cos(theta_t - theta_0, theta_2t - theta_0), free of the run's length, 0.707 for a random walk; NaN where "
        "record 0 or 2t is missing, at t = 0, and where the group has not moved",
        whole_run=True,
    ),
)


class GroupConvergence(Metric):
    """Norm, step size and distance to initial of every parameter group, [group] each.

    The norm is exact, over all elements, and so is the initial one that distances are divided by (a run that goes on
    from a state without it takes the sketch's, whose error adds to the distance's); the rest comes from the sketches
    (their error is in each variable's description). At the first record the previous one does not exist: what compares
    with it is left out (NaN), and the initial state is this one. A frozen group has step 0 and cosine 1; a group whose
    norm is 0 (a bias before its first update) has NaN for whatever divides by it; NaN or inf in a group's weights makes
    its values NaN.
    """

    needs = frozenset({"sketch"})
    variables = LIVE_VARIABLES

    def __init__(self, *, schedule: Schedule | None = None) -> None:
        self.schedule = schedule
        self._initial_norms: Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        """The norms of the initial state; empty before the first record."""
        return {} if self._initial_norms is None else {"initial_norms": self._initial_norms}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the initial norms back."""
        self._initial_norms = state.get("initial_norms")

    def compute(self, state: State) -> Mapping[str, Tensor | float]:
        """Values [group] in the order of `state.groups`, on the parameters' device.

        Raises ValueError where the state has no sketch.
        """
        if state.sketch is None:
            raise ValueError("GroupConvergence needs the sketch of each group: make the State with sketch=.")
        return _figures(self._measure(state))

    def enqueue(self, state: State) -> Mapping[str, Tensor | float]:
        """On a device what the figures follow from on the host."""
        return self.compute(state) if state.head.weight.device.type == "cpu" else self.parts(state)

    def parts(self, state: State) -> dict[str, Tensor | float]:
        """What `conclude` makes the figures of."""
        return {_PART + name: value for name, value in self._measure(state).items()}

    def sent_bytes(self, weight: Tensor) -> int:
        """Three numbers a group, from a device."""
        return 0 if weight.device.type == "cpu" else 8 * 3 * MOST_GROUPS

    def conclude(self, values: dict[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """The figures of sums that have travelled."""
        parts = {name: torch.from_numpy(values.pop(name)) for name in list(values) if name.startswith(_PART)}
        if not parts:
            return values
        found = _figures({name.removeprefix(_PART): value for name, value in parts.items()})
        return values | {name: np.asarray(value) for name, value in found.items()}

    def _measure(self, state: State) -> dict[str, Tensor | float]:
        """Exact norms, and norms and products of sketches and their differences: small, whatever the model's size."""
        if state.sketch is None:
            raise ValueError("GroupConvergence needs the sketch of each group: make the State with sketch=.")
        norms = state.shared[GROUP_NORMS] if GROUP_NORMS in state.shared else group_norms(state.groups)
        if state.initial_sketch is None:
            self._initial_norms = norms.detach()
        now = state.sketch
        initial = now if state.initial_sketch is None else state.initial_sketch.to(now)
        others = torch.stack([initial] if state.previous_sketch is None else [initial, state.previous_sketch.to(now)])
        parts = {"norms": norms, "now": _norms(now), "others": _norms(others), "apart": _norms(now - others)}
        parts["products"] = (now.to(norms.dtype) * others.to(norms.dtype)).sum(-1)
        if self._initial_norms is not None:
            parts["initial_norms"] = self._initial_norms.to(norms)
        if state.learning_rate_sum:
            parts["learning_rate_sum"] = float(state.learning_rate_sum)
        return parts


def _norms(sketches: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(sketches, dim=-1, dtype=accumulator(sketches.device))
    return norms


def _figures(parts: Mapping[str, Any]) -> dict[str, Tensor | float]:
    """The figures that follow from what was measured, wherever it lies; the second of others is the previous record."""
    norms, others, apart = parts["norms"], parts["others"], parts["apart"]
    cosines = (parts["products"] / (parts["now"] * others)).clamp(-1.0, 1.0)
    values: dict[str, Tensor | float] = {
        "convergence.norm": norms,
        "convergence.distance_to_initial": ratio(apart[0], parts.get("initial_norms", others[0])),
        "convergence.cosine_to_initial": cosines[0],
    }
    if len(others) > 1:
        step = ratio(apart[1], norms)
        values |= {"convergence.relative_step": step, "convergence.cosine_to_previous": cosines[1]}
        if "learning_rate_sum" in parts:
            values["convergence.step_per_learning_rate"] = step / float(parts["learning_rate_sum"])
    return values


def convergence_to_final(
    sketches: Float[Tensor, "record group sketch"],
    steps: Int[Tensor, "step"],
    *,
    norms: Float[Tensor, "record group"] | None = None,
) -> dict[str, Float[Tensor, "record group"]]:
    """What only the end of a run can say, from all its sketches: values for `FINAL_VARIABLES`, float64.

    The last record is the final state. `norms` are the exact ones (`convergence.norm`), by which is divided where they
    are given and finite; else by the sketches' own, whose error adds to the distance's (2.5-3.1% in place of 2.2%).
    See the variables' descriptions for definitions and for where they are NaN.
    Reads 64 records at a time, so that memory-mapped sketches need not fit.

    Raises ValueError where the steps are not one per record, or do not rise.
    """
    _check_steps(sketches, steps)
    if len(sketches) == 0:
        empty = torch.zeros(0, sketches.shape[1], dtype=torch.float64)
        return {variable.name: empty for variable in FINAL_VARIABLES}
    exact = torch.full(sketches.shape[:2], torch.nan, dtype=torch.float64) if norms is None else norms.double()
    final = sketches[-1].double()
    blocks = [
        _to_final(block.double(), final, norms=part, final_norm=exact[-1])
        for block, part in zip(sketches.split(RECORDS_AT_ONCE), exact.split(RECORDS_AT_ONCE), strict=True)
    ]
    merged = {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}
    return {**merged, "convergence.log_lag_cosine": log_lag_cosine(sketches, steps)}


def log_lag_cosine(
    sketches: Float[Tensor, "record group sketch"], steps: Int[Tensor, "step"]
) -> Float[Tensor, "record group"]:
    """cos(theta_t - theta_0, theta_2t - theta_0) for every record t, in [-1, 1], float64.

    1 for a straight line, 1/sqrt 2 in expectation for a random walk in many dimensions, whatever the run's length.
    NaN at t = 0, where there is no record at 0 or at 2t, and where the group has not moved since step 0.

    Raises ValueError where the steps are not one per record, or do not rise.
    """
    _check_steps(sketches, steps)
    values = torch.full(sketches.shape[:2], float("nan"), dtype=torch.float64)
    record_of = {step: record for record, step in enumerate(steps.tolist())}
    if 0 not in record_of:
        return values
    start = sketches[record_of[0]].double()
    pairs = [(r, record_of[2 * t]) for t, r in record_of.items() if t > 0 and 2 * t in record_of]
    for record, later in pairs:
        values[record] = cosine(sketches[record].double() - start, sketches[later].double() - start)
    return values


def _to_final(block: Tensor, final: Tensor, *, norms: Tensor, final_norm: Tensor) -> dict[str, Tensor]:
    """One block of records; exact norms are taken where they are known, for unit vectors only where both ends' are."""
    sketched, sketched_final = (torch.linalg.vector_norm(sketch, dim=-1) for sketch in (block, final))
    both = norms.isfinite() & final_norm.isfinite()
    unit = block / torch.where(both, norms, sketched)[..., None]
    unit_final = final / torch.where(both, final_norm, sketched_final)[..., None]
    return {
        "convergence.distance_to_final": ratio(
            distance(block, final), torch.where(final_norm.isfinite(), final_norm, sketched_final)
        ),
        "convergence.unit_distance_to_final": distance(unit, unit_final),
        "convergence.cosine_to_final": cosine(block, final),
    }


def _check_steps(sketches: Tensor, steps: Tensor) -> None:
    if len(sketches) != len(steps):
        raise ValueError(f"{len(sketches)} records of sketches and {len(steps)} steps: pass one step for each record.")
    if len(steps) > 1 and not bool((steps.diff() > 0).all()):
        raise ValueError("the steps of the records must rise: sort the records by step and keep each step once.")


GROUP_NORMS = "group_norms"
"""In `State.shared` where they are known: over all ranks of a sharded model, or left by the pass that sketches."""


def sharded_group_norms(
    groups: Mapping[str, Sequence[tuple[str, Tensor]]], *, ranks: RankGroup
) -> Float[Tensor, "group"]:
    """`group_norms` of a sharded model, from the squares of each rank's parts (collective)."""
    parts = {id(tensor): ranks.part(tensor) for members in groups.values() for _, tensor in members}
    held: dict[str, list[Tensor]] = {}
    for group, members in groups.items():
        mine = (parts[id(tensor)] for _, tensor in members)
        held[group] = [part.values for part in mine if part is not None]
    return ranks.all_reduce_sum(group_norms(held).square()).sqrt()


NORM = "convergence.norm"


def kept_norms(store: Store) -> np.ndarray | None:
    """The groups' exact norms at each record [record, group]; None where the store has none."""
    return np.array(store[NORM], dtype=np.float64) if NORM in store.names else None
