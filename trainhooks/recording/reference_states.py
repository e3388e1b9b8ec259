"""What a recorder remembers of earlier records, so that metrics can compare."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from trainhooks.metrics.base import HEADS
from trainhooks.recording.staging import BlockingStager, Stager

TENSORS = ("initial_head", "previous_head", "initial_sketch", "previous_sketch")


@dataclass
class ReferenceStates:
    """Output embeddings and sketches of the first record and of the last one; None where nothing asks for them.

    Output embeddings are kept by the `stager`, in float32 (bfloat16 would round by more than most updates move): on the
    device where that has room for them, else beside a GPU in pinned memory of the host, and brought to the device for
    the records whose metrics compare with them.
    """

    initial_head: Tensor | None = None
    previous_head: Tensor | None = None
    initial_sketch: Tensor | None = None
    previous_sketch: Tensor | None = None
    stager: Stager = field(default_factory=BlockingStager)

    def advance(self, *, head: Tensor | None, sketch: Tensor | None, needs: frozenset[str]) -> None:
        """Take in the record just made: `head` is the float32 copy that the stager made last, None where it made none.

        Then there is no previous one until the next record, which does not ask for it.
        """
        if head is not None and "initial_head" in needs and self.initial_head is None:
            self.initial_head = self.stager.offload(head)
        if "previous_head" in needs:
            self.previous_head = None if head is None else self.stager.offload(head, over=self.previous_head)
        if self.initial_sketch is None:
            self.initial_sketch = sketch
        self.previous_sketch = sketch

    def brought(self, *, heads: bool) -> ReferenceStates:
        """What one record's metrics are shown; the output embeddings only where `heads` says that one asks for them."""
        initial, previous = (
            self.stager.to_device(kept) if heads and kept is not None else None
            for kept in (self.initial_head, self.previous_head)
        )
        return replace(self, initial_head=initial, previous_head=previous)

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors that are held, on the host."""
        held = {name: getattr(self, name) for name in TENSORS}
        return {
            name: self.stager.to_host(tensor) if name in HEADS else tensor.cpu()
            for name, tensor in held.items()
            if tensor is not None
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take tensors of the host back; `move_to` puts them where they are used."""
        for name, tensor in state.items():
            setattr(self, name, tensor)

    def move_to(self, stager: Stager, *, device: torch.device) -> None:
        """Hold everything where records of a model on `device` look for it: tensors came, or the model has moved."""
        before, self.stager = self.stager, stager
        for name in TENSORS:
            tensor = getattr(self, name)
            if tensor is not None:
                # read: what the stager before keeps may still be on its way there
                setattr(self, name, stager.offload(before.to_host(tensor)) if name in HEADS else tensor.to(device))
