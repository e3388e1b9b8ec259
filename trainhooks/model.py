"""Find the output embedding, the last norm and the parameter groups of a model; give parameters clean names."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from trainhooks.distributed import is_sharded, whole
from trainhooks.effective import (
    adds_bias,
    computed_by,
    dequantized,
    innermost,
    is_affine,
    is_product,
    is_quantized,
    is_tuner,
    outermost,
)
from trainhooks.head_names import HEADS, is_named

WRAPPER_ATTRIBUTES = ("module", "_orig_mod", "_fsdp_wrapped_module")
WRAPPER_PARTS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")

FUSED_LOSS = "LinearCrossEntropyLoss"  # torch's own: the head is its `linear`
OF_CONTEXT = ("ALora", "Arrow")  # variants of LoRA that go by what else is in the sequence

NamedTensors = list[tuple[str, Tensor]]


@dataclass(frozen=True)
class OutputEmbedding:
    """The matrix whose rows score the tokens, and what stands around it.

    `weight` is the parameter itself [vocab, dim]; `bias` [vocab] the head's bias; `norm_weight` and `norm_bias`
    [dim] belong to the last norm before the head, which scales by `norm_weight + norm_offset` (`norm_scale`).
    What a model lacks is None. `tied` says whether the input embedding is the same parameter; `name` is the
    parameter's name without wrappers' prefixes, `module` the module that holds it. `how` says where the numbers come
    from: "weight" itself, the "sum" with LoRA's share, what the module computes of unit vectors ("asked"; other
    adapters, whose base `weight` is), or the "dequantized" weight.
    """

    weight: Tensor
    name: str
    module: nn.Module
    tied: bool = False
    bias: Tensor | None = None
    norm_weight: Tensor | None = None
    norm_bias: Tensor | None = None
    norm_name: str | None = None
    norm_offset: float | None = 0.0
    how: str = "weight"

    def gathered_around(self) -> OutputEmbedding:
        """The same with bias and norm whole where they are sharded (a collective then); `weight` stays as it is.

        The bias of a module that is asked is what it computes now.
        """
        if self.how == "asked":
            return replace(self, bias=None if self.bias is None else self._asked()[1])
        around: dict[str, Any] = {name: getattr(self, name) for name in ("bias", "norm_weight", "norm_bias")}
        if not any(tensor is not None and is_sharded(tensor) for tensor in around.values()):
            return self
        gathered: dict[str, Any] = {name: None if part is None else whole(part) for name, part in around.items()}
        return replace(self, **gathered)

    @property
    def adapted(self) -> bool:
        """Whether the matrix is another than `weight`: an adapter of peft stands around it, or it is quantized."""
        return self.how != "weight"

    @property
    def matrix(self) -> Tensor:
        """What scores the tokens [vocab, dim], detached: `weight`, with what peft's active adapters make of it.

        `weight` itself where the head has no adapter; else a new tensor. Of LoRA it costs one product of the factors,
        of other adapters a pass of the head over `dim` unit vectors.
        """
        if self.how == "asked":
            return self._asked()[0]
        weight = dequantized(self.weight) if self.how == "dequantized" else self.weight.detach()
        adapter: Any = self.module
        if self.how != "sum" or adapter.merged or adapter.disable_adapters:
            return weight
        with torch.no_grad():
            for name in adapter.active_adapters:
                if name in adapter.lora_A:
                    weight = weight + adapter.get_delta_weight(name).to(weight)
        return weight

    def _asked(self) -> tuple[Tensor, Tensor]:
        return computed_by(self.module, dim=self.weight.shape[1], like=_entering(self.weight))

    @property
    def norm_scale(self) -> Tensor | None:
        """What the last norm multiplies by, gamma [dim]; None where there is none, or it is no such product."""
        if self.norm_weight is None or self.norm_offset is None:
            return None
        return self.norm_weight.detach() + self.norm_offset


def core_model(model: nn.Module) -> nn.Module:
    """The model inside DataParallel, DDP, FSDP, `torch.compile` and Lightning modules, where names are clean."""
    while True:
        inner = _inside(model)
        if inner is None:
            return model
        model = inner


def _inside(model: nn.Module) -> nn.Module | None:
    for attribute in WRAPPER_ATTRIBUTES:
        inner = model._modules.get(attribute)
        if inner is not None and len(model._modules) == 1 and not model._parameters:
            return inner
    if any(base.__name__ == "LightningModule" for base in type(model).__mro__):
        owners = {id(owner): owner for owner in _head_owners(model)}
        if len(owners) == 1:
            return next(iter(owners.values()))
        holders = [child for child in model.children() if next(child.parameters(), None) is not None]
        with_head = [child for child in holders if len(_heads(child)) == 1 and not _is_matrix(child)]
        for found in (with_head, holders):
            if len(found) == 1:
                return found[0]
    return None


def clean_name(name: str) -> str:
    """A parameter's name without the parts that wrappers add."""
    return ".".join(part for part in name.split(".") if part not in WRAPPER_PARTS)


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
    return next(path for path, found in core_model(model).named_modules() if found is module)


def module_at(model: nn.Module, path: str) -> nn.Module | None:
    """The core model's module at this path, without walking over all of them; None where there is none."""
    try:
        return core_model(model).get_submodule(path)
    except AttributeError:
        return None


def find_output_embedding(model: nn.Module, *, name: str | None = None) -> OutputEmbedding:
    """The output embedding (LM head) of any `transformers` causal LM, or of any module that names it or is told.

    Looked for in this order: `name` (of a module or of its weight, as `named_modules` of the core model says
    it); `get_output_embeddings()`; a single module called as heads usually are (`lm_head`, `embed_out`,
    `unembed`, `output`, `head`, `decoder`, ...). Wrappers (DataParallel, DDP, `torch.compile`, Lightning) are
    looked through.

    Raises ValueError, naming the candidates, where this does not decide.
    """
    check_model(model)
    core = core_model(model)
    if name is not None:
        path = name.removesuffix(".weight")
        module = dict(core.named_modules()).get(path)
        if module is None or not _is_matrix(module):
            raise ValueError(f"no module with a weight matrix is called {name!r}. {_candidates(core)}")
        return _describe(core, module)
    heads = _heads(core)
    if len(heads) != 1:
        found = "no module is known as the output embedding" if not heads else "several could be it"
        raise ValueError(f"{type(core).__name__}: {found}. {_candidates(core)}")
    return _describe(core, heads[0])


def parameter_groups(
    model: nn.Module, head: OutputEmbedding, *, patterns: Mapping[str, str | Sequence[str]] | None = None
) -> dict[str, NamedTensors]:
    """The parts of a model whose convergence is followed: name -> its parameters, with clean names.

    `whole`, `embedding`, one for each block (`layers.0` ...), `final_norm`, `output_embedding`, and `other` for
    what belongs to none; groups without parameters are left out. A tied matrix stands in `embedding` and in
    `output_embedding`. `patterns` adds groups by glob on the clean names ({"attention": "*.attention.*"}).

    Raises ValueError where a pattern matches no parameter, or takes the name of a group that is there.
    """
    core = core_model(model)
    named = [(name, parameter) for name, parameter in named_parameters(core) if not is_quantized(parameter)]
    blocks = dict(_blocks(core))
    groups: dict[str, NamedTensors] = {"whole": named, "embedding": []}
    groups |= {block: [] for block in blocks.values()}
    groups |= {"final_norm": [], "output_embedding": [], "other": []}
    embeddings = {id(_kept(m)) for m in core.modules() if isinstance(m, nn.Embedding)}
    of_head = {id(parameter) for parameter in (head.weight, head.bias) if parameter is not None}
    if head.adapted:
        of_head |= {id(parameter) for parameter in head.module.parameters()}
    for name, parameter in named:
        homes = [block for prefix, block in blocks.items() if name.startswith(prefix + ".")]
        if not homes and id(parameter) in embeddings:
            homes.append("embedding")
        if id(parameter) in of_head:
            homes.append("output_embedding")
        elif parameter is head.norm_weight or parameter is head.norm_bias:
            homes.append("final_norm")
        for home in homes or ["other"]:
            groups[home].append((name, parameter))
    groups = {group: members for group, members in groups.items() if members}
    for group, globs in (patterns or {}).items():
        if group in groups:
            raise ValueError(f"the group {group!r} is there already; give the pattern another name.")
        wanted = [globs] if isinstance(globs, str) else list(globs)
        groups[group] = [(name, p) for name, p in named if any(fnmatchcase(name, glob) for glob in wanted)]
        if not groups[group]:
            shown = ", ".join(name for name, _ in named[:8])
            raise ValueError(f"no parameter matches {wanted} of group {group!r}. Names look like: {shown}, ...")
    return groups


def _heads(core: nn.Module) -> list[nn.Module]:
    """Modules that are, or by their name and shape could be, the output embedding."""
    heads = [_own_head(owner) for owner in _head_owners(core)]
    heads = heads or [_linear_of(module) for module in core.modules() if type(module).__name__ == FUSED_LOSS]
    if not heads:
        vocabularies = {m.num_embeddings for m in core.modules() if isinstance(m, nn.Embedding)}
        for path, module in core.named_modules():
            fits = _is_matrix(module) and (not vocabularies or _shape(module)[0] in vocabularies)
            if fits and is_named(path, HEADS):
                heads.append(module)
    return list({id(module): module for module in heads}.values())


def _linear_of(loss: nn.Module) -> nn.Module:
    linear = loss.linear
    assert isinstance(linear, nn.Module)
    return linear


def _own_head(owner: nn.Module) -> nn.Module:
    getter: Any = owner.get_output_embeddings
    head: nn.Module = getter()
    return head


def _is_matrix(module: nn.Module | None) -> bool:
    return module is not None and len(_shape(module)) == 2


def _kept(module: nn.Module, name: str = "weight") -> Tensor | None:
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
        kept = list(lists["weight"].parameters(recurse=False))
        return tuple(max(kept, key=torch.numel).shape) if kept else ()
    weight = _kept(module)
    return () if weight is None else tuple(weight.shape)


def _head_owners(model: nn.Module) -> list[nn.Module]:
    """The outermost modules whose `get_output_embeddings()` gives a matrix."""
    getter: Any = getattr(model, "get_output_embeddings", None)
    if callable(getter) and _is_matrix(getter()):
        return [model]
    return [owner for child in model.children() for owner in _head_owners(child)]


def _describe(core: nn.Module, module: nn.Module) -> OutputEmbedding:
    module = outermost(core, core_model(module))  # FSDP's wrapper has the weight too, and its pass is a collective
    weight, name = _parameter_of(core, module)
    if weight is None or name is None:
        raise ValueError(
            f"the weight of {type(module).__name__} is no parameter of the model: it is computed from others "
            "(a parametrization, such as weight_norm) or a buffer (quantized), and cannot be followed. Remove it from "
            "the head."
        )
    how = _how(module, weight)
    tied = any(_kept(m) is weight for m in core.modules() if isinstance(m, nn.Embedding) and m is not module)
    norm_name, norm = _last_norm(core, dim=weight.shape[1])
    return OutputEmbedding(
        weight=weight,
        name=name,
        module=module,
        tied=tied,
        bias=_bias(module, how=how, weight=weight),
        how=how,
        norm_weight=None if norm is None else _kept(norm),
        norm_bias=None if norm is None else _kept(norm, "bias"),
        norm_name=norm_name,
        norm_offset=None if norm is None else _norm_offset(norm),
    )


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


def _parameter_of(core: nn.Module, module: nn.Module) -> tuple[Tensor | None, str | None]:
    """The parameter that is the head's matrix, inside adapters the base one, and its name; None where it is none."""
    names = {id(parameter): path for path, parameter in named_parameters(core)}
    weight = _kept(module) if _is_own(module) else innermost(module)._parameters.get("weight")
    return weight, names.get(id(weight))


def _is_own(module: nn.Module) -> bool:
    """Whether the module's weight is what it multiplies by as far as is known: peft's full copies are such."""
    return not is_tuner(module) or "modules_to_save" in module._modules


def _how(module: nn.Module, weight: Tensor) -> str:
    """Where the head's numbers come from (see `OutputEmbedding.how`).

    Raises ValueError, naming the module's class, where there is no one matrix, or it is sharded as well.
    """
    kind = f"{type(module).__module__}.{type(module).__name__}"
    if isinstance(module, nn.Embedding) or (_has_plain_forward(module) and not is_quantized(weight)):
        return "weight"
    if is_sharded(weight) and _is_own(module):
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
    if is_quantized(weight) and not is_tuner(module):
        return _how_quantized(module, weight, kind=kind)
    return _how_asked(module, weight, kind=kind)


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
    dim, like = weight.shape[1], _entering(weight)
    owner = getattr(module.__dict__.get("forward"), "__self__", module)
    variants = sorted({type(variant).__name__ for variant in getattr(module, "lora_variant", {}).values()})
    reason = "depends on more than its input at one position, or not linearly: it is no one matrix"
    try:
        if _is_own(module) and is_product(module, dim=dim, like=like):
            return "weight"
        alike = owner is module and not any(word in variant for variant in variants for word in OF_CONTEXT)
        if alike and is_affine(module, dim=dim, like=like):
            return "asked"
    except Exception as error:  # foreign code, called with what it may not expect
        if _is_own(module):
            return _how_unasked(module, kind=kind)
        reason = f"cannot be asked for with hidden states alone ({type(error).__name__}: {error})"
    named = kind if owner is module else f"{type(owner).__module__}.{type(owner).__name__}"
    said = f"{named} ({', '.join(variants)})" if variants else named
    way_out = "Name another module by head=." if _is_own(module) else "Leave the head out of it, or use plain LoRA."
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


def _entering(weight: Tensor) -> Tensor:
    """An empty tensor of the dtype and device of hidden states."""
    usual = weight.is_floating_point() and weight.itemsize > 1
    return torch.empty(0, dtype=weight.dtype if usual else torch.get_default_dtype(), device=weight.device)


def _has_plain_forward(module: nn.Module) -> bool:
    return type(module).forward is nn.Linear.forward and "forward" not in module.__dict__


def _is_plain_lora(module: nn.Module) -> bool:
    """Whether this is peft's LoRA of a linear map, whose share is a sum of products."""
    adapter: Any = module
    is_lora = type(module).__module__ == "peft.tuners.lora.layer" and type(module).__name__ == "Linear"
    if not is_lora or "forward" in module.__dict__ or getattr(adapter, "lora_variant", None):
        return False
    return not any(part.bias is not None for part in adapter.lora_B.values()) and _has_plain_forward(adapter.base_layer)


def _bias(module: nn.Module, *, how: str, weight: Tensor) -> Tensor | None:
    """The head's bias; of a module that is asked, what it adds now, None where it never adds anything."""
    if how != "asked":
        return _kept(module if how != "sum" else innermost(module), "bias")
    dim, like = weight.shape[1], _entering(weight)
    return computed_by(module, dim=dim, like=like)[1] if adds_bias(module, dim=dim, like=like) else None


def _norm_offset(norm: nn.Module) -> float | None:
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
    norm, weight = _unsharded(norm), whole(weight)
    signs = torch.ones_like(weight, memory_format=torch.contiguous_format).detach()
    signs[1::2] = -1
    forward = type(norm).forward  # not the module's call: that would run hooks
    with torch.no_grad():
        scale = (forward(norm, signs[None])[0] - forward(norm, -signs[None])[0]) / (2 * signs)
    for offset in (0.0, 1.0):
        if torch.allclose(scale.float(), weight.float() + offset, rtol=1e-2, atol=1e-3):
            return offset
    return None


def _unsharded(norm: nn.Module) -> nn.Module:
    """The same norm over whole parameters; itself where none is sharded (a collective where one is)."""
    if not any(is_sharded(parameter) for parameter in norm.parameters(recurse=False)):
        return norm
    still: nn.Module = object.__new__(type(norm))  # copy.copy() would call the constructor of FSDP2's class
    still.__dict__.update(norm.__dict__)
    own = {name: None if tensor is None else whole(tensor) for name, tensor in norm._parameters.items()}
    still.__dict__["_parameters"] = own
    return still


def _last_norm(core: nn.Module, *, dim: int) -> tuple[str | None, nn.Module | None]:
    """The last norm of the head's width that lies outside the blocks; (None, None) where there is none."""
    inside = tuple(prefix + "." for prefix, _ in _blocks(core))
    found: tuple[str | None, nn.Module | None] = (None, None)
    for path, module in core.named_modules():
        weight = _kept(module)
        is_norm = "norm" in type(module).__name__.lower()
        at_input = "emb" in path.lower()  # BART's stands behind its blocks, yet normalises embeddings
        outside = not path.startswith(inside) and not at_input
        if is_norm and outside and weight is not None and weight.shape == (dim,):
            found = (clean_name(path), module)
    return found


def _blocks(core: nn.Module) -> Iterator[tuple[str, str]]:
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


def _candidates(core: nn.Module) -> str:
    matrices = [
        (clean_name(path), _shape(m))
        for path, m in core.named_modules()
        if isinstance(m, nn.Linear) or (path and _is_matrix(m) and isinstance(m, nn.Embedding))
    ]
    matrices.sort(key=lambda item: -item[1][0])
    shown = ", ".join(f"{path} {shape[0]} x {shape[1]}" for path, shape in matrices[:6])
    return f"Pass head=NAME (name=NAME to find_output_embedding) with one of: {shown or 'none has a matrix'}."
