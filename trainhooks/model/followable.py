"""Where the numbers of a head come from: its weight, an adapter around it, a quantized tensor; or why it is refused."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from trainhooks.model.candidates import kept
from trainhooks.model.distributed import is_sharded
from trainhooks.model.effective import (
    adds_bias,
    computed_by,
    dequantized,
    innermost,
    is_affine,
    is_product,
    is_quantized,
    is_tuner,
)
from trainhooks.model.wrappers import unwrapped

OF_CONTEXT = ("ALora", "Arrow")  # variants of LoRA that go by what else is in the sequence


def how_followed(module: nn.Module, weight: Tensor) -> str:
    """Where the head's numbers come from (see `OutputEmbedding.how`).

    Raises ValueError, naming the module's class, where there is no one matrix, or it is sharded as well.
    """
    kind = f"{type(module).__module__}.{type(module).__name__}"
    if isinstance(module, nn.Embedding) or (_has_plain_forward(module) and not is_quantized(weight)):
        return "weight"
    if is_sharded(weight) and is_own(module):
        return "weight"  # a part of it cannot be asked
    if len(getattr(module, "lora_magnitude_vector", ())):
        raise ValueError("the head has DoRA, which rescales rows; it cannot be followed. Use plain LoRA, unsharded.")
    if is_sharded(weight):
        raise ValueError(
            f"the head has LoRA around a sharded matrix, or another adapter ({kind}); its output embedding cannot be "
            "followed. Use plain LoRA, unsharded."
        )
    if _is_plain_lora(module) and not is_quantized(weight):
        return "sum"
    if is_quantized(weight) and (not is_tuner(module) or _is_packed(module, weight)):
        return _how_quantized(module, weight, kind=kind)
    return _how_asked(module, weight, kind=kind)


def _is_packed(module: nn.Module, weight: Tensor) -> bool:
    """Whether an adapter stands around numbers that are not laid out as a matrix."""
    inner = innermost(module)
    return tuple(weight.shape) != (getattr(inner, "out_features", None), getattr(inner, "in_features", None))


def _how_quantized(module: nn.Module, weight: Tensor, *, kind: str) -> str:
    try:
        numbers = dequantized(weight)
    except Exception as error:  # foreign code
        held = f"the head's weight is quantized ({type(weight).__name__})"
        raise ValueError(f"{held} and cannot be read: {error}. Leave the head out of the quantization.") from error
    if numbers.is_floating_point() and numbers.itemsize > 1 and numbers.shape == weight.shape:
        return "dequantized"
    raise ValueError(
        f"the head is quantized: {kind} holds {weight.dtype} {list(weight.shape)} that names no way back to numbers. "
        "Leave the head out of the quantization."
    )


def _how_asked(module: nn.Module, weight: Tensor, *, kind: str) -> str:
    dim, like = weight.shape[1], entering(weight)
    owner = getattr(module.__dict__.get("forward"), "__self__", module)
    variants = sorted({type(variant).__name__ for variant in getattr(module, "lora_variant", {}).values()})
    reason = "depends on more than its input at one position, or not linearly: it is no one matrix"
    try:
        if is_own(module) and is_product(module, dim=dim, like=like):
            return "weight"
        alike = owner is module and not any(word in variant for variant in variants for word in OF_CONTEXT)
        if alike and is_affine(module, dim=dim, like=like):
            return "asked"
    except Exception as error:  # foreign code, called with what it may not expect
        if is_own(module):
            return _how_unasked(module, kind=kind)
        reason = f"cannot be asked for with hidden states alone ({type(error).__name__}: {error})"
    named = kind if owner is module else f"{type(owner).__module__}.{type(owner).__name__}"
    said = f"{named} ({', '.join(variants)})" if variants else named
    way_out = "Name another module by head=." if is_own(module) else "Leave the head out of it, or use plain LoRA."
    if is_quantized(weight):
        way_out = "Its base is quantized: leave the head out of the quantization."
    raise ValueError(f"the head's output embedding cannot be followed: what {said} computes {reason}. {way_out}")


def _how_unasked(module: nn.Module, *, kind: str) -> str:
    """A head whose own pass needs more than hidden states, such as a loss, is taken by its weight; that is said."""
    if type(module).forward is not nn.Module.forward:
        warnings.warn(
            f"the head {kind} cannot be called with hidden states alone, so nothing shows that it multiplies by its "
            "weight; the weight is what is recorded.",
            RuntimeWarning,
            stacklevel=2,
        )
    return "weight"


def is_own(module: nn.Module) -> bool:
    """Whether the module's weight is what it multiplies by as far as is known: peft's full copies are such."""
    return not is_tuner(module) or "modules_to_save" in module._modules


def entering(weight: Tensor) -> Tensor:
    """An empty tensor of the dtype and device of hidden states."""
    usual = weight.is_floating_point() and weight.itemsize > 1
    return torch.empty(0, dtype=weight.dtype if usual else torch.get_default_dtype(), device=weight.device)


def _has_plain_forward(module: nn.Module) -> bool:
    module = unwrapped(module)
    return type(module).forward is nn.Linear.forward and "forward" not in module.__dict__


def _is_plain_lora(module: nn.Module) -> bool:
    """Whether this is peft's LoRA of a linear map, whose share is a sum of products."""
    adapter: Any = module
    is_lora = type(module).__module__ == "peft.tuners.lora.layer" and type(module).__name__ == "Linear"
    if not is_lora or "forward" in module.__dict__ or getattr(adapter, "lora_variant", None):
        return False
    return not any(part.bias is not None for part in adapter.lora_B.values()) and _has_plain_forward(adapter.base_layer)


def bias_of(module: nn.Module, *, how: str, weight: Tensor) -> Tensor | None:
    """The head's bias; of a module that is asked, what it adds now, None where it never adds anything."""
    if how != "asked":
        return kept(module if how != "sum" else innermost(module), "bias")
    dim, like = weight.shape[1], entering(weight)
    return computed_by(module, dim=dim, like=like)[1] if adds_bias(module, dim=dim, like=like) else None
