"""Finding the output embedding by names and shapes, and on models that transformers saved."""

import pytest
import torch
from safetensors.torch import save_file

from trainhooks.checkpoints.base import CheckpointError, TensorEntry
from trainhooks.checkpoints.head_key import HeadKey, head_key
from trainhooks.checkpoints.opening import open_checkpoint


class Listed:
    """A checkpoint that only lists."""

    name = "listed"

    def __init__(self, shapes, config=None):
        self.tensors = {key: TensorEntry(key, "float32", shape, "f", 0) for key, shape in shapes.items()}
        self.config = config or {}


NEOX = {"gpt_neox.embed_in.weight": (64, 8), "embed_out.weight": (64, 8), "gpt_neox.final_layer_norm.weight": (8,)}
NEOX_CONFIG = {
    "model_type": "gpt_neox", "vocab_size": 60, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 16, "tie_word_embeddings": False,
}  # fmt: skip
CASES = {
    "neox": (NEOX, NEOX_CONFIG, HeadKey("embed_out.weight", None, False)),
    "neox without config": (NEOX, {}, HeadKey("embed_out.weight", None, False)),
    "tied by config": ({"model.embed_tokens.weight": (64, 8)}, {"tie_word_embeddings": True},
                       HeadKey("model.embed_tokens.weight", None, True)),
    "tied and stored twice": ({"model.embed_tokens.weight": (64, 8), "lm_head.weight": (64, 8)},
                              {"tie_word_embeddings": True}, HeadKey("lm_head.weight", None, True)),
    "gpt2 bare": ({"wte.weight": (64, 8), "wpe.weight": (9, 8)}, {}, HeadKey("wte.weight", None, True)),
    "bias": ({"lm_head.weight": (64, 8), "lm_head.bias": (64,)}, {}, HeadKey("lm_head.weight", "lm_head.bias", False)),
    "lightning prefix": ({"net.embed_out.weight": (64, 8)}, {}, HeadKey("net.embed_out.weight", None, False)),
    "a store": ({"output_embedding": (64, 8)}, {}, HeadKey("output_embedding", None, False)),
    "wrapped": ({"_fsdp_wrapped_module.lm_head._fsdp_wrapped_module.weight": (64, 8)}, NEOX_CONFIG,
                HeadKey("_fsdp_wrapped_module.lm_head._fsdp_wrapped_module.weight", None, False)),
    "a trained copy": ({"lm_head.original_module.weight": (64, 8), "lm_head.modules_to_save.default.weight": (64, 8)},
                       {}, HeadKey("lm_head.modules_to_save.default.weight", None, False)),
    "sizes that nobody should build": (NEOX, {**NEOX_CONFIG, "hidden_size": 1 << 50, "rotary_pct": 1 << 50},
                                       HeadKey("embed_out.weight", None, False)),
    "a layer's own output": ({"layers.0.output.weight": (8, 8), "output.weight": (64, 8)}, {"vocab_size": 64},
                             HeadKey("output.weight", None, False)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_head_is_found(case):
    shapes, config, expected = CASES[case]
    assert head_key(Listed(shapes, config)) == expected


@pytest.mark.parametrize(
    ("shapes", "config", "told"),
    [
        ({"a.lm_head.weight": (64, 8), "b.lm_head.weight": (64, 8)}, {}, "2 tensors could be"),
        ({"lm_head.weight": (64, 8), "embed_out.weight": (64, 8)}, {}, "embed_out.weight, lm_head.weight"),
        ({"lm_head.weight": (4, 8)}, {"vocab_size": 60}, r"no tensor has a name.*lm_head.weight \(4, 8\)"),
        ({"model.embed_tokens.weight": (64, 8)}, {"tie_word_embeddings": False}, "no tensor has a name"),
        ({}, {}, "tallest matrices: none"),
    ],
)
def test_several_or_none_are_an_error_that_lists_them(shapes, config, told):
    with pytest.raises(CheckpointError, match=told):
        head_key(Listed(shapes, config))


def test_a_key_given_is_taken_if_it_is_a_matrix():
    checkpoint = Listed({"x.weight": (64, 8), "x.bias": (64,)})
    assert head_key(checkpoint, key="x.weight") == HeadKey("x.weight", "x.bias", False)
    for key in ("y.weight", "x.bias"):
        with pytest.raises(CheckpointError, match=f"no matrix '{key}'"):
            head_key(checkpoint, key=key)


def saved(model_type, folder, **settings):
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(model_type, **settings)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    return model


SMALL = {"vocab_size": 96, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("gpt_neox", {**SMALL, "tie_word_embeddings": False}),
        ("llama", {**SMALL, "num_key_value_heads": 2, "tie_word_embeddings": False}),
        ("llama", {**SMALL, "num_key_value_heads": 2, "tie_word_embeddings": True}),
        ("gpt2", {"vocab_size": 96, "n_embd": 16, "n_layer": 2, "n_head": 2}),
    ],
)
def test_models_that_transformers_saved(tmp_path, model_type, settings):
    model = saved(model_type, tmp_path, **settings)
    state = torch.get_rng_state()
    checkpoint = open_checkpoint(tmp_path)
    found = head_key(checkpoint)
    assert torch.equal(torch.get_rng_state(), state), "finding the head draws no random numbers"
    assert torch.equal(checkpoint.read(found.key), model.get_output_embeddings().weight)
    assert found.tied == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)


def test_a_config_that_its_class_rejects_falls_back_to_names(tmp_path):
    save_file({"embed_out.weight": torch.ones(64, 8)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "gpt_neox", "hidden_size": "wide", "vocab_size": 64}')
    assert head_key(open_checkpoint(tmp_path)).key == "embed_out.weight"
