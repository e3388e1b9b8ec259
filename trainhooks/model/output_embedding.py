"""The output embedding of a model: the matrix whose rows score the tokens, found and described."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from trainhooks.model.blocks_and_norm import last_norm, norm_offset
from trainhooks.model.candidates import candidates_told, heads, is_matrix, kept
from trainhooks.model.core import check_model, core_model, named_parameters
from trainhooks.model.distributed import full_tensor, is_sharded
from trainhooks.model.effective import computed_by, dequantized, innermost, outermost
from trainhooks.model.followable import bias_of, entering, how_followed, is_own


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
        gathered: dict[str, Any] = {name: None if part is None else full_tensor(part) for name, part in around.items()}
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
        return computed_by(self.module, dim=self.weight.shape[1], like=entering(self.weight))

    @property
    def norm_scale(self) -> Tensor | None:
        """What the last norm multiplies by, gamma [dim]; None where there is none, or it is no such product."""
        if self.norm_weight is None or self.norm_offset is None:
            return None
        return self.norm_weight.detach() + self.norm_offset


def find_output_embedding(model: nn.Module, *, name: str | None = None) -> OutputEmbedding:
    """The output embedding (LM head) of any `transformers` causal LM, or of any module that names it or is told.

    Looked for in this order: `name` (of a module or of its weight, as `named_modules` of the core model says
    it); `get_output_embeddings()`; a single module called as heads usually are (`lm_head`, `embed_out`,
    `unembed`, `output`, `head`, `decoder`, ...). Wrappers (DataParallel, DDP, `torch.compile`, Lightning) are
    looked through.

    Raises ValueError, naming the candidates, where this does not decide.

    >>> model = nn.ModuleDict({"embed": nn.Embedding(50, 16), "lm_head": nn.Linear(16, 50)})
    >>> find_output_embedding(model).weight.shape
    torch.Size([50, 16])
    """
    check_model(model)
    core = core_model(model)
    if name is not None:
        path = name.removesuffix(".weight")
        module = dict(core.named_modules()).get(path)
        if module is None or not is_matrix(module):
            raise ValueError(f"no module with a weight matrix is called {name!r}. {candidates_told(core)}")
        return _describe(core, module)
    found = heads(core)
    if len(found) != 1:
        known = "no module is known as the output embedding" if not found else "several could be it"
        raise ValueError(f"{type(core).__name__}: {known}. {candidates_told(core)}")
    return _describe(core, found[0])


def _describe(core: nn.Module, module: nn.Module) -> OutputEmbedding:
    module = outermost(core, core_model(module))  # FSDP's wrapper has the weight too, and its pass is a collective
    weight, name = _parameter_of(core, module)
    if weight is None or name is None:
        raise ValueError(
            f"the weight of {type(module).__name__} is no parameter of the model: it is computed from others "
            "(a parametrization, such as weight_norm) or a buffer (quantized), and cannot be followed. Remove it from "
            "the head."
        )
    how = how_followed(module, weight)
    tied = any(kept(m) is weight for m in core.modules() if isinstance(m, nn.Embedding) and m is not module)
    norm_name, norm = last_norm(core, dim=weight.shape[1])
    return OutputEmbedding(
        weight=weight,
        name=name,
        module=module,
        tied=tied,
        bias=bias_of(module, how=how, weight=weight),
        how=how,
        norm_weight=None if norm is None else kept(norm),
        norm_bias=None if norm is None else kept(norm, "bias"),
        norm_name=norm_name,
        norm_offset=None if norm is None else norm_offset(norm),
    )


def _parameter_of(core: nn.Module, module: nn.Module) -> tuple[Tensor | None, str | None]:
    """The parameter that is the head's matrix, inside adapters the base one, and its name; None where it is none."""
    names = {id(parameter): path for path, parameter in named_parameters(core)}
    weight = kept(module) if is_own(module) else innermost(module)._parameters.get("weight")
    return weight, names.get(id(weight))
