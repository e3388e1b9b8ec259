"""Which modules of a model are, or could be, its output embedding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from trainhooks.model.head_names import HEADS, is_named
from trainhooks.model.wrappers import clean_name

FUSED_LOSS = "LinearCrossEntropyLoss"  # torch's own: the head is its `linear`


def heads(core: nn.Module) -> list[nn.Module]:
    """Modules that are, or by their name and shape could be, the output embedding."""
    found = [_own_head(owner) for owner in head_owners(core)]
    found = found or [_linear_of(module) for module in core.modules() if type(module).__name__ == FUSED_LOSS]
    if not found:
        vocabularies = {m.num_embeddings for m in core.modules() if isinstance(m, nn.Embedding)}
        for path, module in core.named_modules():
            fits = is_matrix(module) and (not vocabularies or _shape(module)[0] in vocabularies)
            if fits and is_named(path, HEADS):
                found.append(module)
    return list({id(module): module for module in found}.values())


def head_owners(model: nn.Module) -> list[nn.Module]:
    """The outermost modules whose `get_output_embeddings()` gives a matrix."""
    getter: Any = getattr(model, "get_output_embeddings", None)
    if callable(getter) and is_matrix(getter()):
        return [model]
    return [owner for child in model.children() for owner in head_owners(child)]


def _linear_of(loss: nn.Module) -> nn.Module:
    linear = loss.linear
    assert isinstance(linear, nn.Module)
    return linear


def _own_head(owner: nn.Module) -> nn.Module:
    getter: Any = owner.get_output_embeddings
    head: nn.Module = getter()
    return head


def is_matrix(module: nn.Module | None) -> bool:
    """Whether the module has a weight of two dimensions."""
    return module is not None and len(_shape(module)) == 2


def kept(module: nn.Module, name: str = "weight") -> Tensor | None:
    """The module's tensor of this name; None where it has none, or a parametrization computes it.

    Such a one is never read: that draws random numbers in some, and in spectral_norm goes one iteration on.
    """
    if is_parametrized(module, name):
        return None
    tensor = getattr(module, name, None)
    return tensor if isinstance(tensor, Tensor) else None


def _shape(module: nn.Module) -> tuple[int, ...]:
    """The shape of the module's weight, without computing it: () where it has none."""
    if is_parametrized(module, "weight"):
        lists: Any = module.parametrizations
        computed_from = list(lists["weight"].parameters(recurse=False))
        return tuple(max(computed_from, key=torch.numel).shape) if computed_from else ()
    weight = kept(module)
    return () if weight is None else tuple(weight.shape)


def candidates_told(core: nn.Module) -> str:
    """What a message says of the largest matrices, and how one is named."""
    matrices = [
        (clean_name(path), _shape(m))
        for path, m in core.named_modules()
        if isinstance(m, nn.Linear) or (path and is_matrix(m) and isinstance(m, nn.Embedding))
    ]
    matrices.sort(key=lambda item: -item[1][0])
    shown = ", ".join(f"{path} {shape[0]} x {shape[1]}" for path, shape in matrices[:6])
    return f"Pass head=NAME (name=NAME to find_output_embedding) with one of: {shown or 'none has a matrix'}."
