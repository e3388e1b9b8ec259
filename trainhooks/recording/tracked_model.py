"""The model that a recorder follows: what is looked at, found again where it is replaced, and copied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trainhooks.metrics.base import State
from trainhooks.model import check_model, find_output_embedding, module_at, module_path, parameter_at, parameter_groups
from trainhooks.model.distributed import RankGroup, full_tensor, is_sharded, reshard, summon_full_params
from trainhooks.numerics.host import cpu_default_device
from trainhooks.numerics.sketch import Sketcher
from trainhooks.recording.arguments import check_same_shape
from trainhooks.recording.reference_states import ReferenceStates
from trainhooks.recording.staging import Stager


class TrackedModel:
    """A model's output embedding `head` and parameter `groups` as they are now, and the `ranks` that train it.

    `name` is the output embedding's module where it cannot be found, `patterns` are further groups by glob patterns.

    Raises ValueError where there is no output embedding, for bad patterns and for models that `RankGroup` refuses.
    """

    def __init__(
        self, model: nn.Module, *, name: str | None, patterns: Mapping[str, str | Sequence[str]] | None
    ) -> None:
        check_model(model)
        self.model = model
        self.ranks = RankGroup(model)  # first: it reshards, and what follows reads parameters
        self.ranks.meet()
        self._name, self._patterns = name, patterns
        self._is_readable = not self.ranks.uses_fsdp1
        with self.full_params():
            self.head = find_output_embedding(model, name=name)
            self.groups = parameter_groups(model, self.head, patterns=patterns)
            self._shape = self.head.weight.shape
            self._path = module_path(model, self.head.module)

    @property
    def is_current(self) -> bool:
        """Whether the model still has the output embedding that was found last, in the same module and shape."""
        weight, module = self.head.weight, module_at(self.model, self._path)
        is_there = parameter_at(self.model, self.head.name) is weight and module is self.head.module
        return is_there and weight.shape == self._shape

    def refresh(self, *, step: int) -> None:
        """Find output embedding and groups anew.

        Raises ValueError where the matrix has another shape at `step`, or the model was sharded meanwhile.
        """
        reshard(self.model)
        self.ranks.check_still_so()
        head = find_output_embedding(self.model, name=self._name)
        check_same_shape(head.weight.shape, before=self._shape, step=step)
        self.head, self.groups = head, parameter_groups(self.model, head, patterns=self._patterns)
        self._path = module_path(self.model, head.module)

    @contextmanager
    def full_params(self, *, gradients: bool = False) -> Iterator[None]:
        """Inside, parameters have their shapes, and their gradients if asked for: elsewhere not where they are flat.

        Collective then; may be nested.
        """
        if self._is_readable:
            yield
            return
        with summon_full_params(self.model, gradients=gradients):
            self._is_readable = True
            try:
                yield
            finally:
                self._is_readable = False

    @property
    def gathered_bytes(self) -> int:
        """Bytes that each record gathers on every rank: a sharded head, or the whole model where it is flat."""
        if self.ranks.uses_fsdp1:
            return sum(parameter.nbytes for _, parameter in self.groups["whole"])
        return self.head.weight.nbytes if is_sharded(self.head.weight) else 0

    @contextmanager
    def no_autocast(self) -> Iterator[None]:
        """No autocast inside, and no default device: the loop's choices are not the metrics'."""
        with torch.autocast(self.head.weight.device.type, enabled=False), cpu_default_device():
            yield

    def state(
        self,
        step: int,
        *,
        references: ReferenceStates,
        learning_rate_sum: float | None,
        sketch: Tensor | None = None,
        label_counts: Tensor | None = None,
    ) -> State:
        """What metrics are shown of the model after `step` updates, beside its `references`."""
        return State(
            step=step,
            model=self.model,
            head=self.head.gathered_around(),
            groups={group: [tensor for _, tensor in members] for group, members in self.groups.items()},
            initial_head=references.initial_head,
            previous_head=references.previous_head,
            sketch=sketch,
            initial_sketch=references.initial_sketch,
            previous_sketch=references.previous_sketch,
            label_counts=label_counts,
            learning_rate_sum=learning_rate_sum,
            ranks=self.ranks,
        )

    def sketch(self, sketcher: Sketcher | None) -> tuple[Tensor | None, Tensor | None]:
        """The groups' sketches [group, sketch], of a sharded model collective; None without a sketcher.

        And the groups' norms, where the same pass gives them.
        """
        if sketcher is None:
            return None, None
        if not self.ranks.sharded:
            return sketcher.sketch_and_norms(self.groups)
        device = self.head.weight.device
        return self.ranks.all_reduce_sum(sketcher.sketch_slices(self.ranks.slices(self.groups), device=device)), None

    def full_head(self) -> Tensor:
        """The output embedding [vocab, dim] as it is, of a sharded one collective; copy what is to be kept."""
        return full_tensor(self.head.matrix)

    def local_rows(self) -> Tensor | None:
        """This rank's own rows of the output embedding as they are; None where others hold the same."""
        part = self.ranks.part(self.head.weight)
        return None if part is None else part.values

    def copy_head(
        self, stager: Stager, *, stored: torch.dtype | None, compared: bool, by_rows: bool, taken: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Point-in-time copies: what this rank stores of the head, and all of it where later records compare with it.

        `stored` is the dtype to store it in, None for not at all; what is `compared` is float32, and stored from that.
        Of a sharded head each rank stores its own rows, without a gather, where the sinks take them (`by_rows`). Where
        nobody on this rank takes records (not `taken`) only what is compared is copied.
        """
        by_rows = by_rows and stored is not None
        copy = None
        if compared or (stored is not None and not by_rows):
            head = self.full_head()  # collective, so before anything that depends on the rank
            if compared or taken:
                copy = stager.copy(head, dtype=torch.float32 if compared or stored is None else stored)
        kept = copy if compared else None
        if stored is None or not by_rows:
            return copy if stored is not None else None, kept
        rows = self.local_rows()
        return None if rows is None else stager.copy(rows, dtype=stored), kept
