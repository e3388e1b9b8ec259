"""The interface of a metric, and what a metric is shown."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor, nn

from trainhooks.core.errors import SettingsError as SettingsError  # noqa: PLC0414 - its public place
from trainhooks.core.schedule import Schedule
from trainhooks.core.variable import Variable
from trainhooks.model import OutputEmbedding
from trainhooks.model.distributed import RankGroup, full_tensor, is_sharded


@dataclass(frozen=True)
class State:
    """The model after `step` optimizer updates, as one record sees it. Read it; never write into it.

    `output_embedding` is `head.matrix` [vocab, dim], detached. `initial_head` and `previous_head` are its
    values at the first record and at the one before (float32), `sketch` and its kin one linear sketch a parameter
    group (see `trainhooks.numerics.sketch`); each is None unless a metric's `needs` names it, and the previous ones are
    None at the first record. `learning_rate_sum` is the sum of the learning rates of the updates since the
    previous record, None where no learning rate is known.

    `ranks` are the processes that train the model together. Where one rank has the whole model (DDP) metrics are
    computed on rank 0 alone, except those that need "hidden", of which every rank has its own. Where it is sharded
    (`DTensor`s in `groups` and gradients) every rank computes every metric, and rank 0's values are kept.

    `shared` is what the metrics of this record share, by key: one leaves here what another would compute again
    (see `trainhooks.metrics.shared_sums`). It is true of these values only, so give an altered state an empty one.
    """

    step: int
    model: nn.Module
    head: OutputEmbedding
    groups: Mapping[str, list[Tensor]]
    initial_head: Float[Tensor, "vocab dim"] | None = None
    previous_head: Float[Tensor, "vocab dim"] | None = None
    sketch: Float[Tensor, "group sketch"] | None = None
    initial_sketch: Float[Tensor, "group sketch"] | None = None
    previous_sketch: Float[Tensor, "group sketch"] | None = None
    label_counts: Int[Tensor, "vocab"] | None = None
    learning_rate_sum: float | None = None
    ranks: RankGroup | None = None
    shared: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def output_embedding(self) -> Tensor:
        """The output embedding [vocab, dim] as it is now, detached from the graph.

        Where it is sharded it is gathered at the first use in a record, 4 bytes an element in float32; with a LoRA
        adapter around it, it is added up then.
        """
        if not is_sharded(self.head.weight) and not self.head.adapted:
            return self.head.weight.detach()
        if "output_embedding" not in self.shared:
            self.shared["output_embedding"] = full_tensor(self.head.matrix)
        gathered: Tensor = self.shared["output_embedding"]
        return gathered


class Metric(ABC):
    """Something measured at every record: from a `State` to small tensors.

    A subclass sets `variables` (what it returns, declared before the run so that the store can lay it out) and
    defines `compute`. It must be pure: no logging, no `.item()`, no move off the device; the recorder moves all
    results of a record at once. `needs` names the references of `State` that must be kept for it ("initial_head",
    "previous_head", "sketch"; "hidden" asks for `observe`); `schedule` is when to compute it (None: the
    recorder's own).

    One that raises is reported once, with the step; its values are NaN from there on, unless the recorder is `strict`.
    `SettingsError` (what does not fit the model) is raised whatever it is.

    `moment` "before_update" is for what needs gradients: `compute` is called when they are complete and the
    parameters have not moved, and its values belong to the record of the update that follows. Gradients are then
    as the loop has them there: clipped in the HF Trainer, not yet clipped in Lightning.
    """

    variables: tuple[Variable, ...]
    needs: frozenset[str] = frozenset()
    schedule: Schedule | None = None
    moment: Literal["after_update", "before_update"] = "after_update"

    @abstractmethod
    def compute(self, state: State) -> Mapping[str, Tensor | float]:
        """A value for each name in `variables`, shaped as declared. Missing names are stored as NaN."""

    def enqueue(self, state: State) -> Mapping[str, Tensor | float]:
        """What a recorder asks for in place of `compute`: what needs no wait for a device, to be sent to the host.

        A metric whose last part would wait there (an eigendecomposition does) returns what that part needs, under
        names of its own, and does it in `conclude`.
        """
        return self.compute(state)

    def conclude(self, values: dict[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """The values of `compute`, of those of `enqueue` once they are on the host; others' values pass through."""
        return values

    def sent_bytes(self, weight: Tensor) -> int:
        """Bytes that `enqueue` sends beside the variables for an embedding `weight`, announced before the run."""
        return 0

    def working_bytes(self, weight: Tensor) -> int:
        """Bytes of buffers where `weight` lies, the embedding that this is computed for: announced before the run."""
        return 0

    def takes_gram(self, step: int) -> bool:
        """Whether the record of `step` takes the Gram of the output embedding from `trainhooks.metrics.shared_sums`.

        Whoever can do without it then makes it all the same, so that it is made once.
        """
        return False

    def kept_bytes(self, state: State) -> Mapping[str, int]:
        """Bytes of references that this metric keeps by itself, "device" and "host": announced before the run."""
        return {}

    def observe(self, hidden: Float[Tensor, "*batch dim"], *, step: int) -> None:  # noqa: B027 - few need it
        """What enters the head in a forward pass of the model after `step` updates, detached; it is read, not kept.

        Called for metrics that name "hidden" among their `needs`, where the record of step + 1 is due.
        """

    def forget(self) -> None:  # noqa: B027 - few need it
        """What was observed since the last update was not trained on: a pass that failed, and is made again."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs of this metric, as tensors and plain values; empty for most."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027 - most metrics have no state
        """Take back what `state_dict` gave."""


HEADS = frozenset({"initial_head", "previous_head"})


NEEDS = HEADS | {"sketch", "hidden"}


def kept_heads(needs: Iterable[str]) -> int:
    """How many float32 output embeddings are kept for these needs."""
    return len(HEADS & set(needs))
