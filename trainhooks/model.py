"""Find the output embedding, the last norm and the parameter groups of a model; give parameters clean names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from trainhooks.distributed import is_sharded, whole
from trainhooks.head_names import HEADS, is_named

WRAPPER_ATTRIBUTES = ("module", "_orig_mod", "_fsdp_wrapped_module")
WRAPPER_PARTS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")

NamedTensors = list[tuple[str, Tensor]]


@dataclass(frozen=True)
class OutputEmbedding:
    """The matrix whose rows score the tokens, and what stands around it.

    `weight` is the parameter itself [vocab, dim]; `bias` [vocab] the head's bias; `norm_weight` and `norm_bias`
    [dim] belong to the last norm before the head, which scales by `norm_weight + norm_offset` (`norm_scale`).
    What a model lacks is None. `tied` says whether the input embedding is the same parameter; `name` is the
    parameter's name without wrappers' prefixes, `module` the module that holds it.
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

    def gathered_around(self) -> OutputEmbedding:
        """The same with bias and norm whole where they are sharded (a collective then); `weight` stays as it is."""
        around: dict[str, Any] = {name: getattr(self, name) for name in ("bias", "norm_weight", "norm_bias")}
        if not any(tensor is not None and is_sharded(tensor) for tensor in around.values()):
            return self
        gathered: dict[str, Any] = {name: None if part is None else whole(part) for name, part in around.items()}
        return replace(self, **gathered)

    @property
    def adapted(self) -> bool:
        """Whether LoRA's layer of peft stands around the matrix."""
        return _is_adapter(self.module)

    @property
    def matrix(self) -> Tensor:
        """What scores the tokens [vocab, dim], detached: `weight`, with the share of LoRA's active adapters added.

        `weight` itself where the head has no adapter; else a new tensor, at the cost of one product of their factors.
        """
        weight = self.weight.detach()
        adapter: Any = self.module
        if not self.adapted or adapter.merged or adapter.disable_adapters:
            return weight
        with torch.no_grad():
            for name in adapter.active_adapters:
                if name in adapter.lora_A:
                    weight = weight + adapter.get_delta_weight(name).to(weight)
        return weight

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
    named = named_parameters(core)
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
    if not heads:
        vocabularies = {m.num_embeddings for m in core.modules() if isinstance(m, nn.Embedding)}
        for path, module in core.named_modules():
            fits = _is_matrix(module) and (not vocabularies or _shape(module)[0] in vocabularies)
            if fits and is_named(path, HEADS):
                heads.append(module)
    return list({id(module): module for module in heads}.values())


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
    module = _adapted(core, module)
    weight = _kept(module)
    name = next((path for path, parameter in named_parameters(core) if parameter is weight), None)
    if weight is None or name is None:
        raise ValueError(
            f"the weight of {type(module).__name__} is no parameter of the model: it is computed from others "
            "(a parametrization, such as weight_norm) or a buffer, and cannot be followed. Remove it from the head."
        )
    tied = any(_kept(m) is weight for m in core.modules() if isinstance(m, nn.Embedding) and m is not module)
    norm_name, norm = _last_norm(core, dim=weight.shape[1])
    return OutputEmbedding(
        weight=weight,
        name=name,
        module=module,
        tied=tied,
        bias=_kept(module, "bias"),
        norm_weight=None if norm is None else _kept(norm),
        norm_bias=None if norm is None else _kept(norm, "bias"),
        norm_name=norm_name,
        norm_offset=None if norm is None else _norm_offset(norm),
    )


def _is_adapter(module: nn.Module) -> bool:
    """Whether this is peft's layer around a matrix of which it trains a low-rank change."""
    return all(hasattr(module, name) for name in ("base_layer", "get_delta_weight", "lora_A"))


def _adapted(core: nn.Module, module: nn.Module) -> nn.Module:
    """The adapter's layer around a head, the head itself where there is none.

    Raises ValueError for adapters whose share is no sum: DoRA's, and those around a sharded head.
    """
    outer: nn.Module = next((m for m in core.modules() if _is_adapter(m) and m.base_layer is module), module)
    if not _is_adapter(outer):
        return module
    scaled: Any = getattr(outer, "lora_magnitude_vector", ())
    weight = outer.weight
    if len(scaled) or (isinstance(weight, Tensor) and is_sharded(weight)):
        kind = "DoRA, which rescales rows" if len(scaled) else "LoRA around a sharded matrix"
        raise ValueError(f"the head has {kind}; its output embedding cannot be followed. Use plain LoRA, unsharded.")
    return outer


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
