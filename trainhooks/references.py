"""What a recorder remembers of earlier records, so that metrics can compare."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

NEEDS = frozenset({"initial_head", "previous_head", "sketch", "hidden"})


@dataclass
class References:
    """Output embeddings and sketches of the first record and of the last one; None where nothing asks for them."""

    initial_head: Tensor | None = None
    previous_head: Tensor | None = None
    initial_sketch: Tensor | None = None
    previous_sketch: Tensor | None = None

    def advance(self, *, head: Tensor | None, sketch: Tensor | None, needs: frozenset[str]) -> None:
        """Take in the record just made: `head` is a copy that nobody else writes into."""
        if "initial_head" in needs and self.initial_head is None:
            self.initial_head = head
        if "previous_head" in needs:
            self.previous_head = head
        if self.initial_sketch is None:
            self.initial_sketch = sketch
        self.previous_sketch = sketch

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors that are held, on the host."""
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor.cpu() for name, tensor in held.items() if tensor is not None}

    def load_state_dict(self, state: dict[str, Tensor], *, device: torch.device) -> None:
        """Take tensors back, onto the device."""
        for name, tensor in state.items():
            setattr(self, name, tensor.to(device))


def head_bytes(needs: Iterable[str], *, vocab: int, dim: int) -> int:
    """Device bytes of the float32 output embeddings that are kept, the copy in flight included."""
    kept = len({"initial_head", "previous_head"} & set(needs))
    return (kept + 1) * vocab * dim * 4
