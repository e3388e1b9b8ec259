"""What stands around modules: DataParallel, DDP, FSDP, `torch.compile`, Fabric, checkpointing; names without them."""

from __future__ import annotations

from torch import nn

WRAPPER_ATTRIBUTES = ("module", "_orig_mod", "_fsdp_wrapped_module")
WRAPPER_PARTS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def clean_name(name: str) -> str:
    """A parameter's name without the parts that wrappers add."""
    return ".".join(part for part in name.split(".") if part not in WRAPPER_PARTS)


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside what wraps it alone."""
    while (inner := inside_wrapper(module)) is not None:
        module = inner
    return module


def inside_wrapper(module: nn.Module) -> nn.Module | None:
    """What is wrapped, one layer in; None where this is no wrapper."""
    for attribute in (*WRAPPER_ATTRIBUTES, "_checkpoint_wrapped_module"):
        inner = module._modules.get(attribute)
        if inner is not None and len(module._modules) == 1 and not module._parameters:
            return inner
    if any(base.__name__ == "_FabricModule" for base in type(module).__mro__):
        return module._modules["_forward_module"]  # the model as it was given stands beside it
    return None
