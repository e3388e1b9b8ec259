"""Whether the output embedding has moved since it was marked: a few of its numbers are kept and compared."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from trainhooks.model import OutputEmbedding, is_quantized
from trainhooks.model.distributed import local_tensor

SAMPLE = 1 << 14  # numbers of each parameter


@dataclass(frozen=True)
class Mark:
    """Parameters, and what some of their numbers were; nothing here waits for a device.

    The numbers lie evenly over each parameter, of a sharded one over this rank's share. An update that changes none
    of them is not seen.
    """

    kept: tuple[tuple[Tensor, Tensor], ...]

    @staticmethod
    @torch.no_grad()
    def of(head: OutputEmbedding) -> Mark:
        """A mark of all that makes the scores of hidden states: matrix, bias, adapters; not of quantized numbers."""
        parts = [head.weight, *([] if head.bias is None else [head.bias])]
        if head.adapted:
            parts += head.module.parameters()
        plain = [part for part in parts if not is_quantized(local_tensor(part))]
        return Mark(tuple((part, _sample(local_tensor(part))) for part in plain))

    @torch.no_grad()
    def moved(self) -> Bool[Tensor, ""]:
        """Whether any of them is another now, on the device. What has changed its shape or device tells nothing."""
        found = [
            ((now != before) & ~(now.isnan() & before.isnan())).any()
            for part, before in self.kept
            if (now := _sample(local_tensor(part))).shape == before.shape and now.device == before.device
        ]
        return torch.stack(found).any() if found else torch.zeros((), dtype=torch.bool, device="cpu")


def _sample(tensor: Tensor) -> Tensor:
    """Up to `SAMPLE` numbers, evenly over the tensor: an odd stride meets all columns of a matrix of even width."""
    stride = max(1, tensor.numel() // SAMPLE) | 1
    return tensor.take(torch.arange(0, tensor.numel(), stride, device=tensor.device))
