"""Which of a checkpoint's tensors is the output embedding, and which its bias."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

from trainhooks.store import SNAPSHOT
from trainhooks.suites.base import Checkpoint, CheckpointError, TensorEntry

HEAD_MODULES = ("lm_head", "embed_out", "output_embedding", "unembed", "output", "head", "decoder", "to_logits")
INPUT_MODULES = ("wte", "embed_tokens", "embed_in", "word_embeddings", "tok_embeddings", "tok_emb", "embedding")
WEIGHT = ".weight"
UNASKED = ("auto_map", "quantization_config")  # remote code, and packages that only loading needs
# names do not depend on sizes: whatever else a config says (a table of 10^9 positions, a kernel to fetch) is not built
ASKED = ("model_type", "tie_word_embeddings")
WRAPPERS = ("._fsdp_wrapped_module", "._checkpoint_wrapped_module", ".modules_to_save.default")


class HeadKey(NamedTuple):
    """`key` of the output embedding [vocab, dim], `bias_key` of the head's bias [vocab] or None, and whether it is
    `tied` to the input embedding (then `key` may be the input embedding's)."""

    key: str
    bias_key: str | None
    tied: bool


class _Declared(NamedTuple):
    """What the model class says: its head's and its input embedding's parameter names, and whether they are one."""

    head: str
    embedding: str
    tied: bool


def head_key(checkpoint: Checkpoint, *, key: str | None = None) -> HeadKey:
    """Find the output embedding of a checkpoint by names and shapes; nothing is read.

    In this order: the `key` given; a store's own `output_embedding`; the name that the model class of config.json has
    for it, where transformers is installed and knows the class (built on the meta device with one layer and the
    class's own sizes; no remote code); the one two-dimensional tensor under a known name (`lm_head.weight`,
    `embed_out.weight`, ...) with at least config's `vocab_size` rows
    where it says one; and, where config says `tie_word_embeddings` or no such tensor is stored while config does not
    deny it, the one input embedding under a known name. Raises CheckpointError that lists the candidates where there
    are several or none.
    """
    tensors = checkpoint.tensors
    if key is not None:
        if key not in tensors or len(tensors[key].shape) != 2:
            raise CheckpointError(f"{checkpoint.name} has no matrix {key!r}. {_matrices(tensors)}")
        return _with_bias(key, tensors, tied=bool(checkpoint.config.get("tie_word_embeddings", False)))
    if SNAPSHOT in tensors:
        return HeadKey(SNAPSHOT, None, False)
    declared = _declared(*(json.dumps(checkpoint.config.get(name), default=str) for name in ASKED))
    tied = declared.tied if declared else checkpoint.config.get("tie_word_embeddings")
    for named in (declared.head, declared.embedding if declared.tied else None) if declared else ():
        found = _ending_with(named, checkpoint) if named else []
        if len(found) == 1:
            return _with_bias(found[0], tensors, tied=bool(tied))
    heads = _under(HEAD_MODULES, checkpoint)
    if not heads and tied is not False:
        heads, tied = _under(INPUT_MODULES, checkpoint), True
    if len(heads) != 1:
        found_text = f"{len(heads)} tensors could be the output embedding: {', '.join(heads)}." if heads else ""
        raise CheckpointError(
            f"{checkpoint.name}: {found_text or 'no tensor has a name known for an output embedding.'} "
            f"Name it by its key. {_matrices(tensors)}"
        )
    return _with_bias(heads[0], tensors, tied=bool(tied))


def _fits(entry: TensorEntry, checkpoint: Checkpoint) -> bool:
    vocab_size = checkpoint.config.get("vocab_size")
    rows = vocab_size if isinstance(vocab_size, int) else 1
    return len(entry.shape) == 2 and entry.shape[0] >= rows


def _under(modules: Iterable[str], checkpoint: Checkpoint) -> list[str]:
    """Fitting weights of modules with these names, the shallowest only: a layer's own `output` is no head."""
    endings = tuple(module + WEIGHT for module in modules)
    found = [
        key
        for key, entry in checkpoint.tensors.items()
        if ".".join(_unwrapped(key).split(".")[-2:]) in endings and _fits(entry, checkpoint)
    ]
    depth = min((key.count(".") for key in found), default=0)
    return sorted(key for key in found if key.count(".") == depth)


def _ending_with(name: str, checkpoint: Checkpoint) -> list[str]:
    """Fitting tensors with this name, or this name behind a wrapper's prefix (`model.`, `module.`)."""
    tensors = checkpoint.tensors
    if name in tensors:
        return [name] if _fits(tensors[name], checkpoint) else []
    fitting = [key for key, entry in tensors.items() if _fits(entry, checkpoint)]
    return [key for key in fitting if f".{_unwrapped(key)}".endswith("." + name)]


def _unwrapped(key: str) -> str:
    """The name without what FSDP, activation checkpointing and PEFT's trained copies put into it."""
    for wrapper in WRAPPERS:
        key = key.replace(wrapper, "")
    return key


def _with_bias(key: str, tensors: Mapping[str, TensorEntry], *, tied: bool) -> HeadKey:
    bias = key.removesuffix(WEIGHT) + ".bias"
    holds = bias != key and bias in tensors and tensors[bias].shape == tensors[key].shape[:1]
    return HeadKey(key, bias if holds else None, tied)


def _matrices(tensors: Mapping[str, TensorEntry]) -> str:
    matrices = sorted((entry for entry in tensors.values() if len(entry.shape) == 2), key=lambda e: -e.shape[0])
    return "Its tallest matrices: " + (", ".join(f"{e.key} {e.shape}" for e in matrices[:6]) or "none") + "."


@lru_cache(maxsize=64)
def _declared(model_type: str, tied: str) -> _Declared | None:
    """What transformers' class for these fields of config.json, as JSON, says; None without transformers, or where it
    does not know the class."""
    fields = {name: json.loads(value) for name, value in zip(ASKED, (model_type, tied), strict=True)}
    if not isinstance(fields["model_type"], str) or importlib.util.find_spec("transformers") is None:
        return None
    if not isinstance(fields["tie_word_embeddings"], bool):
        del fields["tie_word_embeddings"]  # the class's own default
    # a class may reject a config in any way; names are the fallback
    with contextlib.suppress(Exception):
        return _ask_transformers(fields)
    return None


def _ask_transformers(fields: dict[str, object]) -> _Declared | None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = AutoConfig.for_model(str(fields.pop("model_type")), **fields)
    settings.num_hidden_layers = 1
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(settings, trust_remote_code=False)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or embedding is None:
        return None
    names = {id(module): name + WEIGHT for name, module in model.named_modules()}
    return _Declared(names[id(head)], names[id(embedding)], head.weight is embedding.weight)
