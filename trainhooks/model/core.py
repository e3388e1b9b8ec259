"""The model inside its wrappers, and what it holds by name."""

from __future__ import annotations

from torch import Tensor, nn

from trainhooks.model.candidates import head_owners, heads, is_matrix
from trainhooks.model.wrappers import clean_name, inside_wrapper

NamedTensors = list[tuple[str, Tensor]]


def core_model(model: nn.Module) -> nn.Module:
    """The model inside DataParallel, DDP, FSDP, `torch.compile`, Fabric and Lightning: names are clean there."""
    while True:
        inner = _inside(model)
        if inner is None:
            return model
        model = inner


def _inside(model: nn.Module) -> nn.Module | None:
    if (inner := inside_wrapper(model)) is not None:
        return inner
    if any(base.__name__ == "LightningModule" for base in type(model).__mro__):
        owners = {id(owner): owner for owner in head_owners(model)}
        if len(owners) == 1:
            return next(iter(owners.values()))
        holders = [child for child in model.children() if next(child.parameters(), None) is not None]
        with_head = [child for child in holders if len(heads(child)) == 1 and not is_matrix(child)]
        for found in (with_head, holders):
            if len(found) == 1:
                return found[0]
    return None


def named_parameters(model: nn.Module) -> NamedTensors:
    """All parameters of the core model with clean names, each once. Raises ValueError where two names are one."""
    named: NamedTensors = [(clean_name(name), parameter) for name, parameter in core_model(model).named_parameters()]
    names = [name for name, _ in named]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"several parameters are called {twice[:3]} once wrappers' names are taken off; rename them.")
    return named


def parameter_at(model: nn.Module, name: str) -> Tensor | None:
    """The core model's parameter of this name, without walking over all of them; None where there is none."""
    try:
        return core_model(model).get_parameter(name)
    except AttributeError:
        return None


def module_path(model: nn.Module, module: nn.Module) -> str:
    """Where the core model has the module; to be given to `module_at`."""
    path: str = next(path for path, found in core_model(model).named_modules() if found is module)
    return path


def module_at(model: nn.Module, path: str) -> nn.Module | None:
    """The core model's module at this path, without walking over all of them; None where there is none."""
    try:
        return core_model(model).get_submodule(path)
    except AttributeError:
        return None


def check_model(model: object) -> None:
    """Raises ValueError for what is no module, and for parameters that DeepSpeed has taken away (ZeRO-3)."""
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"the model is a {type(model).__module__}.{type(model).__name__}, which is no torch.nn.Module. Pass the "
            "module that it wraps."
        )
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "ds_id") and parameter.numel() == 0:
            raise ValueError(
                f"{clean_name(name)} is empty: DeepSpeed ZeRO-3 has partitioned the model, and its parameters cannot "
                "be read between passes. Use ZeRO stage 2, or shard the model with torch.distributed.fsdp.fully_shard."
            )
