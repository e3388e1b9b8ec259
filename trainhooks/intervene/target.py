"""The model to intervene on: its output embedding, and copies of it with another one."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from trainhooks.corpora.tokenizers import Tokenizer, load_tokenizer
from trainhooks.model import OutputEmbedding, find_output_embedding


@dataclass(frozen=True)
class Target:
    """A causal LM in evaluation mode and float32, its tokenizer, and what scores its tokens.

    `weight` [vocab, dim] float32 and `bias` [vocab] (None without one) are those of the head, detached; `tied` says
    whether the input embedding is the same matrix. Neither is written into: `with_head` makes a copy that shares all
    other parameters.
    """

    model: nn.Module
    tokenizer: Tokenizer
    weight: Float[Tensor, "vocab dim"]
    bias: Float[Tensor, "vocab"] | None
    name: str
    tied: bool = False

    @property
    def head(self) -> OutputEmbedding:
        """The output embedding inside the model, with the last norm before it."""
        return find_output_embedding(self.model)

    @property
    def vocab(self) -> int:
        """Rows of the output embedding."""
        return len(self.weight)

    def with_head(
        self, weight: Float[Tensor, "vocab dim"], *, bias: Float[Tensor, "vocab"] | None = None, untie: bool = True
    ) -> Target:
        """The same model with another output embedding; this one is left as it was.

        `bias` replaces the head's bias, None keeps it. A tied input embedding keeps its old matrix (the copy is
        untied); with `untie` off it takes the new one as well, and hidden states change with it.

        Raises ValueError where a shape differs from the model's.
        """
        if weight.shape != self.weight.shape or (bias is not None and bias.shape != weight.shape[:1]):
            raise ValueError(
                f"got an output embedding {tuple(weight.shape)} and a bias "
                f"{None if bias is None else tuple(bias.shape)}; {self.name} has {tuple(self.weight.shape)}. "
                "Take the matrix of a run of this model."
            )
        weight = weight.detach().to(self.weight).clone()
        new_bias = self.bias if bias is None else bias.detach().to(self.weight).clone()
        model = _with_parameters(self.model, self.head, weight, new_bias, both=self.tied and not untie)
        return Target(model, self.tokenizer, weight, new_bias, self.name, tied=self.tied and not untie)

    @property
    def keeps_bias(self) -> bool:
        """Whether the model's class has a bias in its head, so that one set here survives saving."""
        return getattr(_meta_head(self.model), "bias", None) is not None

    def with_constant(self, dimensions: Int64[Tensor, "some"], values: Float[Tensor, "some"]) -> Target:
        """The same model with some dimensions of every hidden state held at given values by the last norm itself:
        its scale there is 0 and its bias the value. The output embedding stays, and so does a tied input embedding.

        Raises ValueError where no norm with scale and bias stands before the head.
        """
        head = self.head
        if head.norm_weight is None or head.norm_bias is None or head.norm_offset is None:
            raise ValueError(
                f"the last norm of {self.name} has no bias (an RMSNorm has none), so it cannot hold dimensions at "
                "their means. Save a code of the variant zero or compensated."
            )
        scale, bias = head.norm_weight.detach().clone(), head.norm_bias.detach().clone()
        scale[dimensions] = -head.norm_offset
        bias[dimensions] = values.to(bias)
        model: Any = copy.copy(self.model)
        model.__dict__ = self.model.__dict__ | {"_modules": dict(self.model._modules)}
        parameters = {"weight": nn.Parameter(scale, requires_grad=False), "bias": nn.Parameter(bias, False)}
        norm = next(module for module in self.model.modules() if _holds(module, head.norm_weight))
        path = next(path for path, module in self.model.named_modules() if module is norm)
        _put(model, path, _shallow(norm, _parameters=dict(norm._parameters) | parameters))
        return Target(model, self.tokenizer, self.weight, self.bias, self.name, tied=self.tied)

    def save(self, folder: str | Path) -> None:
        """Write the model and its tokenizer so that `transformers` loads them from `folder`.

        Raises ValueError where the head has a bias that the model's class does not know: it would be lost.
        """
        if self.bias is not None and not self.keeps_bias:
            raise ValueError(
                f"{type(self.model).__name__} has no bias in its head, so loading would lose the one set here. Save an "
                "edit of the output embedding (a direction other than logit_bias)."
            )
        writer: Any = self.model
        writer.save_pretrained(folder)
        self.tokenizer.backend.save(str(Path(folder) / "tokenizer.json"))


def load_target(
    model: str | Path,
    *,
    store: str | Path | None = None,
    step: int | None = None,
    tokenizer: str | Path | None = None,
) -> Target:
    """A model from a folder or a hub id, as float32 on the CPU; code that a checkpoint carries is never run.

    With `store` the output embedding of its `step` (the last by default) replaces the head; the rest stays the
    folder's, so only the step that the folder was saved at is a model that ever was. `tokenizer` is the path of a
    tokenizer.json where the model has none beside it.

    Raises ValueError where there is no model, no tokenizer, or the store's matrix has another shape, and where the
    output embedding or the head's bias is not finite; ImportError without `transformers`.
    """
    if store is None and step is not None:
        raise ValueError(f"step {step} is of a store: pass store= as well.")
    loaded = _load(str(model))
    head = find_output_embedding(loaded)
    bias = None if head.bias is None else head.bias.detach().float()
    found = load_tokenizer(model if tokenizer is None else tokenizer)
    weight = head.weight.detach()
    if found.size > len(weight):
        raise ValueError(
            f"the tokenizer has {found.size} ids; the output embedding of {model} has {len(weight)} rows. Pass "
            "tokenizer=, the one that belongs to this model."
        )
    target = Target(loaded, found, weight, bias, str(model), head.tied)
    target = target if store is None else target.with_head(store_matrix(store, step))
    _check_finite(target)
    return target


def _check_finite(target: Target) -> None:
    for what, values in (("output embedding", target.weight), ("head's bias", target.bias)):
        if values is not None and not bool(values.isfinite().all()):
            row = int((~values.isfinite()).nonzero()[0, 0])
            raise ValueError(
                f"{target.name}: the {what} has values that are not finite (row {row} first), so no token has a "
                "probability. Take an earlier step."
            )


def _load(name: str) -> nn.Module:
    try:
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise ImportError("interventions need transformers: pip install 'trainhooks[transformers]'.") from error
    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        line = next((line for line in str(error).splitlines() if line), type(error).__name__)
        raise ValueError(f"{name} cannot be loaded as a causal LM: {line} Give a folder or a hub id.") from error
    module: nn.Module = model
    return module.eval().requires_grad_(False)


def store_matrix(path: str | Path, step: int | None = None) -> Float[Tensor, "vocab dim"]:
    """The output embedding of a store's step, by default the last. Raises ValueError for a store without any."""
    from trainhooks.store import open_store

    store = open_store(path)
    if not len(store.snapshot_steps):
        raise ValueError(f"{path} holds no output embeddings: record with snapshots on.")
    return torch.from_numpy(store.output_embedding(store.snapshot_steps[-1] if step is None else step))


def _meta_head(model: nn.Module) -> nn.Module:
    """The head that the model's class makes from its config, without memory."""
    kind: Any = type(model)
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        return find_output_embedding(kind(copy.deepcopy(model.config))).module


def _with_parameters(
    model: nn.Module, head: OutputEmbedding, weight: Tensor, bias: Tensor | None, *, both: bool
) -> nn.Module:
    """A copy of the modules on the way to the head (and to a tied input embedding); all others are shared."""
    paths = dict(model.named_modules())
    new: Any = copy.copy(model)
    new.__dict__ = model.__dict__ | {"_modules": dict(model._modules), "config": copy.deepcopy(model.config)}
    new.config.tie_word_embeddings = both
    parameter = nn.Parameter(weight, requires_grad=False)
    changed = {path: module for path, module in paths.items() if module is head.module}
    if both:
        changed |= {path: m for path, m in paths.items() if getattr(m, "weight", None) is head.weight}
    for path, module in changed.items():
        parameters = dict(module._parameters) | {"weight": parameter}
        if module is head.module and bias is not None:
            parameters["bias"] = nn.Parameter(bias, requires_grad=False)
        _put(new, path, _shallow(module, _parameters=parameters))
    if not both and head.tied:
        new.all_tied_weights_keys = {}
    changed_model: nn.Module = new
    return changed_model


def _holds(module: nn.Module, parameter: Tensor) -> bool:
    return any(own is parameter for own in module._parameters.values())


def _shallow(module: nn.Module, **replaced: Any) -> nn.Module:
    twin = copy.copy(module)
    twin.__dict__ = module.__dict__ | {"_modules": dict(module._modules)} | replaced
    return twin


def _put(root: nn.Module, path: str, module: nn.Module) -> None:
    """Set a submodule by its path, copying the modules on the way so that the original keeps its own."""
    *way, name = path.split(".")
    for part in way:
        inner = root._modules[part]
        assert inner is not None
        root._modules[part] = twin = _shallow(inner)
        root = twin
    root._modules[name] = module
