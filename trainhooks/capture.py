"""From the device to the host: what a record holds, moved without touching the model."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


@dataclass(frozen=True)
class Packed:
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


def pack(values: Mapping[str, Tensor | float]) -> Packed:
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
    return Packed(known, shapes, torch.cat(there) if there else None)


def as_now(values: Mapping[str, Tensor | float]) -> dict[str, Tensor | float]:
    """Results that stay what they are when parameters move: one may be a parameter, or a view of it."""
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in values.items()}


def to_host(values: Mapping[str, Tensor | float]) -> dict[str, np.ndarray]:
    """All results of a record as float64 arrays, moved in a single transfer; waits for the device."""
    packed = pack(values)
    return packed.unpack(None if packed.flat is None else packed.flat.cpu())


@contextmanager
def on_host() -> Iterator[None]:
    """Inside, new tensors that name no device lie on the host, whatever `torch.set_default_device` says."""
    with nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu"):
        yield


def add_label_counts(counts: Int[Tensor, "bins"], labels: Int[Tensor, "..."]) -> None:
    """Add each label's occurrences to `counts` [vocab + 2], in place and without waiting for the device.

    Bin 0 takes what is no label (negative ids: padding, -100), bin w + 1 the token w, the last one what lies beyond
    the vocabulary.
    """
    ids = labels.detach().reshape(-1).to(counts.device, torch.int64).clamp(-1, len(counts) - 2) + 1
    counts.index_add_(0, ids, torch.ones_like(ids))


class _Hook:
    """Calls a function that returns nothing; in copies and pickles of the model, which are others, it does not."""

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function

    @torch.compiler.disable
    def __call__(self, *given: Any) -> None:
        self._function(*given)

    def __reduce__(self) -> tuple[type[_Hook], tuple[Callable[..., None]]]:
        return _Hook, (_nothing,)


def _nothing(*given: Any) -> None:
    """What a hook does in a copied model."""


def watch_forward(module: nn.Module, before: Callable[[dict[str, Any]], None]) -> RemovableHandle:
    """Call `before(kwargs)` ahead of each training pass of `module`; nothing is changed.

    Passes without gradients (evaluation) are not seen. Register before the first compiled call: a hook that comes
    later never fires. `remove()` the handle at the end.
    """

    def pre_hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module.training and torch.is_grad_enabled():
            before(kwargs)

    return module.register_forward_pre_hook(_Hook(pre_hook), with_kwargs=True)


def watch_head_input(
    module: nn.Module, on_hidden: Callable[[Tensor], None], *, training_only: bool = True
) -> RemovableHandle:
    """Call `on_hidden(hidden)` with what enters the head [..., dim], detached, before each pass; nothing is changed.

    By default only training passes with gradients count. A pass that activation checkpointing repeats in the
    backward pass counts once: the first is taken where it has gradients, else (reentrant checkpointing) the repeat.
    `hidden` is the live activation: copy what is to be kept. Register before the first compiled call: a hook that
    comes later never fires. It breaks the compiled graph at the head, so `fullgraph=True` refuses it.
    """
    seen_forward = False

    def pre_hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal seen_forward
        if training_only and not (module.training and torch.is_grad_enabled()):
            return
        in_backward = torch._C._current_graph_task_id() != -1
        if in_backward and seen_forward:
            return
        seen_forward = seen_forward or not in_backward
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor) and value.is_floating_point():
                with torch.no_grad():
                    on_hidden(value.detach())
                return

    return module.register_forward_pre_hook(_Hook(pre_hook), with_kwargs=True)


class WatchedHead:
    """Shows a function what enters the head in training passes; knows whether anything was ever shown (`has_seen`)."""

    def __init__(self, on_hidden: Callable[[Tensor], None]) -> None:
        self.has_seen = False
        self._on_hidden = on_hidden
        self._module: nn.Module | None = None
        self._handle: RemovableHandle | None = None

    def follow(self, module: nn.Module) -> None:
        """Watch this module, and no other any more."""
        if module is not self._module:
            self.remove()
            self._module, self._handle = module, watch_head_input(module, self._on_hidden)

    def remove(self) -> None:
        """Watch nothing."""
        if self._handle is not None:
            self._handle.remove()
        self._module = self._handle = None

    def check_seen(self, *, step: int) -> None:
        """Say, once, that nothing has entered the head by the time when the record of `step` needs it."""
        if not self.has_seen:
            self.has_seen = True
            warnings.warn(
                f"step {step}: nothing has entered the head's module, so what is measured on hidden states is NaN. The "
                "loss bypasses the module (a fused loss), or the model was compiled and called before the recorder was "
                "made. Call recorder.observe(hidden) in each training pass, or make the recorder first (said once).",
                RuntimeWarning,
                stacklevel=4,
            )
