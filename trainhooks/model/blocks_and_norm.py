"""The blocks of a model, and the last norm before its head."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from trainhooks.model.candidates import kept
from trainhooks.model.distributed import full_tensor, is_sharded
from trainhooks.model.wrappers import clean_name


def blocks(core: nn.Module) -> Iterator[tuple[str, str]]:
    """(path, group name) of each block: the members of the outermost ModuleLists that hold parameters."""
    lists: list[tuple[str, nn.ModuleList]] = []
    for path, module in core.named_modules():
        nested = any(path.startswith(outer + ".") for outer, _ in lists)
        if isinstance(module, nn.ModuleList) and not nested and next(module.parameters(), None) is not None:
            lists.append((path, module))
    for path, module in lists:
        for key, _ in module.named_children():
            prefix = clean_name(path)
            yield f"{prefix}.{key}", f"layers.{key}" if len(lists) == 1 else f"{prefix}.{key}"


def last_norm(core: nn.Module, *, dim: int) -> tuple[str | None, nn.Module | None]:
    """The last norm of the head's width that lies outside the blocks; (None, None) where there is none."""
    inside = tuple(prefix + "." for prefix, _ in blocks(core))
    found: tuple[str | None, nn.Module | None] = (None, None)
    for path, module in core.named_modules():
        weight = kept(module)
        is_norm = "norm" in type(module).__name__.lower()
        at_input = "emb" in path.lower()  # BART's stands behind its blocks, yet normalises embeddings
        outside = not path.startswith(inside) and not at_input
        if is_norm and outside and weight is not None and weight.shape == (dim,):
            found = (clean_name(path), module)
    return found


def norm_offset(norm: nn.Module) -> float | None:
    """What the norm adds to its weight before it multiplies: 0, or 1 as in Gemma; None where it does otherwise.

    Also None where the norm keeps statistics, as a batch norm does: a pass would change them.
    A vector of +1 and -1 in turn has mean 0 and length sqrt(dim), so that a norm only scales it.
    """
    weight = norm.weight
    assert isinstance(weight, Tensor)
    if next(norm.buffers(), None) is not None:
        return None
    if weight.is_meta or len(weight) % 2:
        return 0.0
    norm, weight = _whole_and_wide(norm), full_tensor(weight).detach().float()
    signs = torch.ones_like(weight, memory_format=torch.contiguous_format)
    signs[1::2] = -1
    forward = type(norm).forward  # not the module's call: that would run hooks
    with torch.no_grad():
        scale = (forward(norm, signs[None])[0] - forward(norm, -signs[None])[0]) / (2 * signs)
    for offset in (0.0, 1.0):
        if torch.allclose(scale.float(), weight + offset, rtol=1e-2, atol=1e-3):
            return offset
    return None


def _whole_and_wide(norm: nn.Module) -> nn.Module:
    """The same norm over whole parameters in float32; itself where its are (a collective where one is sharded).

    In half precision what a bias loses to rounding may be more than the weight beside it.
    """
    held = list(norm.parameters(recurse=False))
    if not any(is_sharded(parameter) or parameter.dtype != torch.float32 for parameter in held):
        return norm
    still: nn.Module = object.__new__(type(norm))  # copy.copy() would call the constructor of FSDP2's class
    still.__dict__.update(norm.__dict__)
    own = {name: None if one is None else full_tensor(one).detach().float() for name, one in norm._parameters.items()}
    still.__dict__["_parameters"] = own
    return still
