"""What the model class that a config.json names says of its output embedding."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

UNASKED = ("auto_map", "quantization_config")  # remote code, and packages that only loading needs
# names do not depend on sizes: whatever else a config says (a table of 10^9 positions, a kernel to fetch) is not built
ASKED = ("model_type", "tie_word_embeddings")


class Declared(NamedTuple):
    """Parameter names of the head, of its bias (a tied one may have several) and of the input embedding, and whether
    head and input embedding are one."""

    head: str
    biases: tuple[str, ...]
    embedding: str
    tied: bool


def declared_by(config: Mapping[str, object]) -> Declared | None:
    """What transformers' class for this config says; None without transformers, or where it does not know the class.

    The class is built on the meta device with one layer and its own sizes; no remote code, no random numbers.
    """
    return _declared(*(json.dumps(config.get(name), default=str) for name in ASKED))


@lru_cache(maxsize=64)
def _declared(model_type: str, tied: str) -> Declared | None:
    fields = {name: json.loads(value) for name, value in zip(ASKED, (model_type, tied), strict=True)}
    if not isinstance(fields["model_type"], str) or importlib.util.find_spec("transformers") is None:
        return None
    if not isinstance(fields["tie_word_embeddings"], bool):
        del fields["tie_word_embeddings"]  # the class's own default
    # a class may reject a config in any way; names are the fallback
    with contextlib.suppress(Exception):
        return _ask_transformers(fields)
    return None


def _ask_transformers(fields: dict[str, object]) -> Declared | None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = AutoConfig.for_model(str(fields.pop("model_type")), **fields)
    settings.num_hidden_layers = 1
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(settings, trust_remote_code=False)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or embedding is None:
        return None
    names = {id(module): name + ".weight" for name, module in model.named_modules()}
    bias = getattr(head, "bias", None)
    biases = tuple(n for n, p in model.named_parameters(remove_duplicate=False) if bias is not None and p is bias)
    return Declared(names[id(head)], biases, names[id(embedding)], head.weight is embedding.weight)
