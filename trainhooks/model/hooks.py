"""Hooks on a model's modules, which return nothing and change nothing: the only file that registers any."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class _Hook:
    """Calls a function that returns nothing; in copies and pickles of the model, which are others, it does not."""

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function

    @torch.compiler.disable  # type: ignore[untyped-decorator]
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
