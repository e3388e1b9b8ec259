"""The right matrix for the causal language models of transformers: by their configuration, and by names alone or not at
all. A sample by default; `TRAINHOOKS_EVERY_CLASS=1` takes every class that can be built small."""

import contextlib
import os
import warnings
from functools import lru_cache

import pytest
import torch
from test_head_key import Listed

from trainhooks.checkpoints.base import CheckpointError
from trainhooks.checkpoints.head_key import head_key

transformers = pytest.importorskip("transformers", reason="its classes are what is tested")

VOCAB = 515  # unlike any width
SIZES = {
    "vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
    "intermediate_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 4, "d_model": 64, "n_layers": 2, "n_heads": 4,
    "head_dim": 16, "max_position_embeddings": 64, "n_positions": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "moe_intermediate_size": 32, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4,
}  # fmt: skip
SAMPLE = ("bert", "bloom", "ctrl", "gpt2", "gptj", "mamba", "modernbert-decoder", "olmo2", "phi", "qwen2", "xglm")
EVERY = os.environ.get("TRAINHOOKS_EVERY_CLASS") == "1"


def known_types():
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as named

    return sorted(named if EVERY else set(SAMPLE) & set(named))


@lru_cache(maxsize=32)
def built(model_type, tied):
    """A model without numbers; None where the class cannot be built small, or not so."""
    with contextlib.suppress(Exception), warnings.catch_warnings():  # a class may reject sizes in any way
        warnings.simplefilter("ignore")
        settings = transformers.AutoConfig.for_model(model_type)
        sizes = {name: size for name, size in SIZES.items() if hasattr(settings, name)}
        config = transformers.AutoConfig.for_model(model_type, **sizes, tie_word_embeddings=tied)
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config)
        if model.get_output_embeddings() is not None and sum(p.numel() for p in model.parameters()) < 5_000_000:
            return model
    return None


def as_saved(model):
    """Names and shapes, each tensor once, and the name and shape of the head that is among them."""
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    head = model.get_output_embeddings().weight
    return shapes, next(name for name, parameter in model.named_parameters() if parameter is head)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", known_types())
def test_its_head_and_no_other_is_read(model_type, tied):
    model = built(model_type, tied)
    if model is None:
        pytest.skip(f"{model_type} cannot be built of {VOCAB} x 64")
    shapes, head = as_saved(model)
    config = {"model_type": model_type, "tie_word_embeddings": tied, "vocab_size": shapes[head][0]}
    assert head_key(Listed(shapes, config)).key == head
    with contextlib.suppress(CheckpointError):  # refused is right where names do not say it
        assert head_key(Listed(shapes, {})).key == head


def test_the_sample_is_tested():
    assert all(built(model_type, False) is not None for model_type in SAMPLE)
