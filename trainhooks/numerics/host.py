"""From the device to the host: what a record holds, moved without touching the model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class PackedResults:
    """A record's results: `known` numbers of the host, and one vector `flat` of all that lie on a device.

    `shapes` holds the shape of every result, in their order.
    """

    known: Mapping[str, np.ndarray]
    shapes: Mapping[str, tuple[int, ...]]
    flat: Float[Tensor, "number"] | None

    def unpack(self, flat: Float[Tensor, "number"] | None) -> dict[str, np.ndarray]:
        """All results as float64 arrays, given `flat` on the host. Whole numbers are exact to 2^53."""
        moved = [name for name in self.shapes if name not in self.known]
        arrays = dict(self.known)
        if flat is not None:
            parts = flat.double().split([math.prod(self.shapes[name]) for name in moved])
            arrays |= {n: part.reshape(self.shapes[n]).numpy() for n, part in zip(moved, parts, strict=True)}
        return {name: arrays[name] for name in self.shapes}


def pack(values: Mapping[str, Tensor | float]) -> PackedResults:
    """Results as they are now, to be moved in a single transfer; nothing waits for a device."""
    tensors = {name: value.detach() for name, value in values.items() if isinstance(value, Tensor)}
    host = torch.device("cpu")
    device = next((tensor.device for tensor in tensors.values() if tensor.device != host), host)
    # on its way to a device a tensor of the host would be waited for
    here = {name: tensor for name, tensor in tensors.items() if tensor.device == host != device}
    known = {name: np.array(value, dtype=np.float64) for name, value in values.items() if name not in tensors}
    known |= {name: tensor.to(torch.float64, copy=True).numpy() for name, tensor in here.items()}
    dtype = torch.float32 if device.type == "mps" else torch.float64  # mps has no float64
    there = [tensor.reshape(-1).to(device, dtype) for name, tensor in tensors.items() if name not in here]
    shapes = {name: tuple(np.shape(value)) for name, value in values.items()}
    return PackedResults(known, shapes, torch.cat(there) if there else None)


def cloned(values: Mapping[str, Tensor | float]) -> dict[str, Tensor | float]:
    """Results that stay what they are when parameters move: one may be a parameter, or a view of it."""
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in values.items()}


def to_host(values: Mapping[str, Tensor | float]) -> dict[str, np.ndarray]:
    """All results of a record as float64 arrays, moved in a single transfer; waits for the device."""
    packed = pack(values)
    return packed.unpack(None if packed.flat is None else packed.flat.cpu())


@contextmanager
def cpu_default_device() -> Iterator[None]:
    """Inside, new tensors that name no device lie on the host, whatever `torch.set_default_device` says."""
    with nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu"):
        yield
