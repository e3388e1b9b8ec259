"""A module that stands for a checkpoint: its structure and names on the meta device, its tensors only where read."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from trainhooks.checkpoints.base import Checkpoint, CheckpointError, TensorEntry
from trainhooks.checkpoints.declared_head import UNASKED
from trainhooks.checkpoints.head_key import IN_A_BLOCK, HeadKey
from trainhooks.model import (
    WRAPPER_ATTRIBUTES,
    NamedTensors,
    OutputEmbedding,
    clean_name,
    find_output_embedding,
    named_parameters,
    parameter_groups,
)
from trainhooks.model.head_names import INPUTS

PREFIXES = (*WRAPPER_ATTRIBUTES, "model")
BUFFERS = ("inv_freq", "masked_bias", "position_ids")
FLOATS = ("float64", "float32", "float16", "bfloat16")
TIED_HEAD = "lm_head"
LEAVES = {
    "kernel": "weight",
    "embedding": "weight",
    "W_U": "weight",
    "W_E": "weight",
    "b_U": "bias",
}  # flax, and others
UNOPENED = "a shard that was not opened"
UNKNOWN_SHAPE = (0, 0)


@dataclass(frozen=True)
class ModelSkeleton:
    """`model` on the meta device, the name of its output embedding's module, and each parameter's key as stored.

    Parameters that the checkpoint does not hold under a key that fits have none. `is_whole` is False where some of
    them stand there by name alone, without their shape: those of shards that were not opened.
    """

    model: nn.Module
    head_module: str
    keys: FittingKeys | dict[str, str]
    is_whole: bool = True

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Place tensors that were read, by parameter name; a tied one stands in every place of it."""
        named = dict(named_parameters(self.model))
        new = {id(named[name]): nn.Parameter(tensor, requires_grad=False) for name, tensor in tensors.items()}
        for module in self.model.modules():
            for leaf, parameter in module._parameters.items():
                if id(parameter) in new:
                    module._parameters[leaf] = new[id(parameter)]

    @property
    def head(self) -> OutputEmbedding:
        """The output embedding and what stands around it, as it is now."""
        return find_output_embedding(self.model, name=self.head_module)

    @cached_property
    def head_name(self) -> str:
        """The output embedding's name as a parameter."""
        return self.head.name

    @cached_property
    def around(self) -> dict[str, str]:
        """The keys of the head's bias and the last norm, by parameter name; those that the checkpoint holds."""
        head = self.head
        beside = {id(part) for part in (head.bias, head.norm_weight, head.norm_bias) if part is not None}
        names = [name for name, parameter in named_parameters(self.model) if id(parameter) in beside]
        return {name: self.keys[name] for name in names if name in self.keys}

    def groups(self, patterns: Sequence[str] = ()) -> dict[str, NamedTensors]:
        """Parameter groups by the names and rules of a live run; each of `patterns` is a group under its own glob."""
        return parameter_groups(self.model, self.head, patterns={pattern: pattern for pattern in patterns})


def build_skeleton(checkpoint: Checkpoint, head: HeadKey, *, whole: bool = True) -> ModelSkeleton:
    """The skeleton of a checkpoint; no weight is read. Not `whole`: no header beside the head's and its norm's.

    Its structure is that of the class that config.json names, where transformers has it and its output embedding fits
    the file; the names are then those of a live model. Else it is what the keys say: numbered modules are blocks,
    `embed*` and kin embeddings, `*norm*` and `ln*` norms. Raises CheckpointError where the head finds no place.
    """
    model = _declared(checkpoint.config)
    if model is not None:
        found = _fitted(model, checkpoint.tensors, head)
        if found is not None:
            return found
    return _by_names(checkpoint, head, whole=whole)


def _declared(config: Mapping[str, object]) -> nn.Module | None:
    fields = {name: value for name, value in config.items() if name not in UNASKED}
    if not isinstance(fields.get("model_type"), str) or importlib.util.find_spec("transformers") is None:
        return None
    # a class may reject a config in any way; names are the fallback
    with contextlib.suppress(Exception):
        from transformers import AutoConfig, AutoModelForCausalLM

        settings = AutoConfig.for_model(str(fields.pop("model_type")), **json.loads(json.dumps(fields)))
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            model: nn.Module = AutoModelForCausalLM.from_config(settings, trust_remote_code=False)
        return model
    return None


def _fitted(model: nn.Module, tensors: Mapping[str, TensorEntry], head: HeadKey) -> ModelSkeleton | None:
    """The model with its parameters' keys; None where its output embedding is not the checkpoint's."""
    try:
        found = find_output_embedding(model)
    except ValueError:
        return None
    if found.weight.shape != tensors[head.key].shape:
        return None
    known = {found.name: head.key}
    bias = next((name for name, parameter in named_parameters(model) if parameter is found.bias), None)
    if bias is not None and head.bias_key is not None:
        known[bias] = head.bias_key
    by_end = _by_end(tensors)
    places = {}
    for name, parameter in named_parameters(model):
        key = known.get(name) or (name if name in tensors else by_end.get(name))
        if key is not None:
            places[name] = key, tuple(parameter.shape)
    module = next(path for path, module in model.named_modules() if module is found.module)
    return ModelSkeleton(model, module, FittingKeys(places, tensors))


class FittingKeys:
    """Keys by parameter name, of those `places` (key and the parameter's shape) whose tensor has that shape.

    A tensor's header is looked at when its parameter is asked for: this is no mapping, since to go through it would
    read them all.
    """

    def __init__(self, places: Mapping[str, tuple[str, tuple[int, ...]]], tensors: Mapping[str, TensorEntry]) -> None:
        self._places, self._tensors = places, tensors

    def __getitem__(self, name: str) -> str:
        if name not in self:
            raise KeyError(name)
        return self._places[name][0]

    def __contains__(self, name: str) -> bool:
        return name in self._places and self._tensors[self._places[name][0]].shape == self._places[name][1]


def _by_end(tensors: Mapping[str, TensorEntry]) -> dict[str, str]:
    """Keys without a wrapper's prefix (`model.`, `module.`), where that says which."""
    return {key.split(".", 1)[1]: key for key in tensors if key.split(".", 1)[0] in PREFIXES and "." in key}


def _by_names(checkpoint: Checkpoint, head: HeadKey, *, whole: bool) -> ModelSkeleton:
    wanted = checkpoint.tensors.items()
    entries = {key: _known(entry, whole=whole) for key, entry in wanted if not entry.key.endswith(BUFFERS)}
    entries = {key: entry for key, entry in entries.items() if entry.dtype in FLOATS}
    if head.key not in entries:
        raise CheckpointError(f"{checkpoint.name}: {head.key!r} is of {checkpoint.tensors[head.key].dtype}, no float.")
    keys = _parameter_names(entries, head=head.key)
    names = {key: name for name, key in keys.items()}
    paths: dict[str, dict[str, TensorEntry]] = {}
    for name, key in keys.items():
        path, leaf = name.rsplit(".", 1)
        paths.setdefault(path, {})[leaf] = entries[key]
    head_path = names[head.key].rsplit(".", 1)[0]
    is_embedding = head.tied and _is_embedding(head_path, paths[head_path])
    model = nn.Module()
    modules = _with_parents(paths)
    for path in sorted(modules, key=_natural):
        is_head = path == head_path and not is_embedding
        module = nn.Linear(1, 1, device="meta") if is_head else _module(path, paths.get(path, {}), modules)
        module._parameters.update(dict.fromkeys(module._parameters))
        for leaf, entry in paths.get(path, {}).items():
            meta = torch.empty(entry.shape, dtype=getattr(torch, entry.dtype), device="meta")
            module._parameters[leaf] = nn.Parameter(meta, requires_grad=False)
        parent = model.get_submodule(path.rpartition(".")[0])
        parent._modules[path.rpartition(".")[2]] = module
    if is_embedding:
        tied = nn.Linear(1, 1, bias=False, device="meta")
        tied._parameters["weight"] = model.get_submodule(head_path)._parameters["weight"]
        model._modules[TIED_HEAD] = tied
    is_whole = all(entry.file != UNOPENED for entry in entries.values())
    return ModelSkeleton(model, TIED_HEAD if is_embedding else head_path, keys, is_whole=is_whole)


def _known(entry: TensorEntry, *, whole: bool) -> TensorEntry:
    """The entry, or one that only has its name, where its shard has not been opened and need not be: what lies in a
    numbered block is no last norm."""
    if whole or entry.announced or not (IN_A_BLOCK.search(entry.key) or "emb" in entry.key.lower()):
        return entry
    return TensorEntry(entry.key, FLOATS[0], UNKNOWN_SHAPE, UNOPENED, 0)


def _parameter_names(entries: Mapping[str, TensorEntry], *, head: str) -> dict[str, str]:
    """Each key by the parameter's name: without wrappers' parts, with the leaf that torch has (`weight`, `bias`)."""
    names = _with_leaves(entries, head=head)
    while len({name.split(".", 1)[0] for name in names}) == 1 and next(iter(names)).split(".", 1)[0] in PREFIXES:
        if not all(name.count(".") > 1 for name in names):
            break
        names = {name.split(".", 1)[1]: key for name, key in names.items()}
    return {name if "." in name else f"{name}.weight": key for name, key in names.items()}


def _with_leaves(entries: Mapping[str, TensorEntry], *, head: str) -> dict[str, str]:
    """Each key by its name with torch's leaf, where no other has that name; the head's becomes a `weight`."""
    names: dict[str, str] = {}
    for key in sorted(entries, key=lambda key: key != head):
        name = clean_name(key)
        path, _, leaf = name.rpartition(".")
        new = f"{path}.{LEAVES[leaf]}" if path and leaf in LEAVES else name
        if key == head and new.rpartition(".")[2] != "weight":
            new = f"{new}.weight"
        names[name if new in names or (new != name and new in entries) else new] = key
    return names


def _with_parents(paths: Mapping[str, object]) -> set[str]:
    return {".".join(path.split(".")[:depth]) for path in paths for depth in range(1, path.count(".") + 2)}


def _natural(path: str) -> list[tuple[int, str]]:
    """Parents before what they hold, and block 2 before block 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in path.split(".")]


def _is_embedding(path: str, leaves: Mapping[str, TensorEntry]) -> bool:
    last = path.rsplit(".", 1)[-1]
    is_matrix = "weight" in leaves and len(leaves["weight"].shape) == 2
    return is_matrix and (last in INPUTS or "emb" in last)


def _module(path: str, leaves: Mapping[str, TensorEntry], paths: set[str]) -> nn.Module:
    """The kind of module that a path names, without parameters."""
    last = path.rsplit(".", 1)[-1].lower()
    if _is_embedding(path, leaves):
        rows, dim = leaves["weight"].shape
        return nn.Embedding(rows, dim, device="meta")
    if "weight" in leaves and len(leaves["weight"].shape) == 1 and ("norm" in last or last.startswith("ln")):
        return nn.LayerNorm(leaves["weight"].shape[0], device="meta")
    inside = [other[len(path) + 1 :] for other in paths if other.startswith(path + ".")]
    if inside and all(name.split(".")[0].isdigit() for name in inside):
        return nn.ModuleList()
    return nn.Module()
