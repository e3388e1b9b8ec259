"""Heads as other projects name and store them: never the input embedding in place of an untied head."""

import json

import pytest
import torch
from safetensors.torch import save_file, save_model
from test_head_key import Listed
from torch import nn

from trainhooks.checkpoints.audit.audit import audit_suite
from trainhooks.checkpoints.base import CheckpointError
from trainhooks.checkpoints.head_key import head_key
from trainhooks.checkpoints.opening import open_checkpoint
from trainhooks.checkpoints.suite import list_suite
from trainhooks.probe_report.source import open_matrix

WIDE = (64, 8)
UNTIED = {  # layout of names: (input embedding, head)
    "native OLMo": ("model.transformer.wte.weight", "model.transformer.ff_out.weight"),
    "OLMo-core": ("model.embeddings.weight", "model.lm_head.w_out.weight"),
    "Megatron": ("embedding.word_embeddings.weight", "output_layer.weight"),
    "Megatron-LM": ("language_model.embedding.word_embeddings.weight", "language_model.output_layer.weight"),
    "NeoX as a pipeline": ("sequential.0.word_embeddings.weight", "sequential.6.final_linear.weight"),
    "fairseq": ("decoder.embed_tokens.weight", "decoder.output_projection.weight"),
    "Phi's first form": ("layers.0.wte.weight", "layers.3.linear.weight"),
    "RWKV": ("emb.weight", "head.weight"),
    "Meta": ("tok_embeddings.weight", "output.weight"),
    "pico": ("embedding_proj.weight", "de_embedding_proj.weight"),
    "a word model": ("encoder.weight", "decoder.weight"),
    "compiled": ("_orig_mod.embed.weight", "_orig_mod.lm_head.weight"),
    "Lightning": ("model.model.embed_tokens.weight", "model.lm_head.weight"),
}
INSIDE = {  # what blocks hold under names that heads have elsewhere
    "model.transformer.blocks.0.ff_out.weight": (64, 8),
    "decoder.layers.0.output.weight": (64, 8),
    "layers.1.mlp.w_out.weight": (64, 8),
    "sequential.2.attention.dense.weight": (64, 8),
    "optimizer.state.exp_avg.output_layer.weight": (64, 8),
}


@pytest.mark.parametrize("config", [{}, {"vocab_size": 60}, {"weight_tying": False}], ids=str)
@pytest.mark.parametrize("kind", UNTIED)
def test_an_untied_head_is_found_by_its_name(kind, config):
    embedding, head = UNTIED[kind]
    found = head_key(Listed({embedding: WIDE, **INSIDE, head: WIDE}, config))
    assert (found.key, found.tied) == (head, False)


@pytest.mark.parametrize("shape", [WIDE, (60, 8), (8, 64)], ids=str)
@pytest.mark.parametrize("name", ["scorer.weight", "prediction.kernel", "unembed.weight_T", "transformer.out.weight"])
def test_a_matrix_that_could_be_an_untied_head_stops_the_guess(name, shape):
    """Also the other way round, as [dim, vocab]."""
    listed = Listed({"wte.weight": WIDE, name: shape, **INSIDE})
    with pytest.raises(CheckpointError, match=rf"wte\.weight would be it if it were tied, but so could {name}"):
        head_key(listed)
    assert head_key(listed, key="wte.weight").key == "wte.weight"
    listed.config = {"weight_tying": True}
    assert head_key(listed).tied, "the configuration decides"


@pytest.mark.parametrize(
    ("config", "tied"),
    [
        ({"tie_word_embeddings": True}, True),
        ({"weight_tying": True}, True),
        ({"share-embeddings-and-output-weights": True}, True),
        ({"untie_embeddings_and_output_weights": False}, True),
        ({"text_config": {"tie_word_embeddings": True}}, True),
        ({"share_decoder_input_output_embed": True}, True),
        ({"tie_word_embeddings": False}, False),
        ({"untie_embeddings_and_output_weights": True}, False),
        ({"no-weight-tying": True}, False),
        ({"text_config": {"tie_word_embeddings": False}}, False),
    ],
    ids=str,
)
def test_the_configuration_says_whether_it_is_tied(config, tied):
    listed = Listed({"embed_tokens.weight": WIDE, "scorer.weight": WIDE}, config)
    if tied:
        assert head_key(listed).key == "embed_tokens.weight"
        assert "configuration says" in head_key(listed).why
    else:
        with pytest.raises(CheckpointError, match="configuration says that it is not the input embedding"):
            head_key(listed)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (["lm_head.qweight", "lm_head.scales"], "lm_head.qweight says that .* quantised"),
        (["lm_head.weight", "lm_head.SCB"], "lm_head.SCB says that .* quantised"),
        (["lm_head.weight", "lm_head.weight.absmax"], "quantised"),
        (["output_layer.weight_packed", "output_layer.weight_scale"], "quantised"),
        (["lm_head.base_layer.weight", "lm_head.lora_A.default.weight"], "belongs to an adapter"),
        (["base_model.model.lm_head.lora_A.weight"], "belongs to an adapter"),
    ],
    ids=str,
)
def test_a_head_that_is_no_matrix_of_numbers_is_said(keys, told):
    with pytest.raises(CheckpointError, match=told):
        head_key(
            Listed({"model.embed_tokens.weight": WIDE, **dict.fromkeys(keys, WIDE)}, {"tie_word_embeddings": True})
        )


@pytest.mark.parametrize("beside", ["weight_scale", "weight_scale_inv", "SCB", "weight.absmax", "weight.quant_map"])
def test_a_quantised_input_embedding_is_no_tied_head(beside):
    listed = Listed(
        dict.fromkeys(("embed_tokens.weight", f"embed_tokens.{beside}"), WIDE), {"tie_word_embeddings": True}
    )
    for key in (None, "embed_tokens.weight"):
        with pytest.raises(CheckpointError, match=r"quantised .*Dequantise the model"):
            head_key(listed, key=key)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8])
def test_an_input_embedding_of_few_bits_is_no_tied_head(tmp_path, dtype):
    save_file({"model.embed_tokens.weight": torch.ones(12, 4).to(dtype)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"quantised .*Dequantise the model"):
        head_key(open_checkpoint(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("bias", ["cls.predictions.bias", "lm_head.bias", "generator_lm_head.bias"])
def test_a_tied_head_keeps_its_bias(bias):
    inside = {"encoder.layer.0.output.dense.bias": (64,), "encoder.layer.0.output.bias": (8,)}
    listed = Listed({"embeddings.word_embeddings.weight": WIDE, bias: (64,), **inside}, {"tie_word_embeddings": True})
    assert head_key(listed).bias_key == bias


def test_an_adapter_with_an_embedding_alone_is_no_tied_head():
    keys = {"base_model.model.model.embed_tokens.weight": WIDE, "base_model.model.layers.0.q.lora_A.weight": (4, 8)}
    with pytest.raises(CheckpointError, match="It is an adapter"):
        head_key(Listed(keys))


class Wrapped(torch.Tensor):
    """A tensor of a class of its own, as quantisation libraries and DTensor have them."""

    @staticmethod
    def __new__(cls, data):
        return torch.Tensor._make_wrapper_subclass(cls, data.shape, dtype=data.dtype)

    def __init__(self, data):
        self.data_inside = data

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten.detach.default, torch.ops.aten.clone.default):
            return cls(args[0].data_inside)
        raise NotImplementedError(function)


def test_a_head_of_a_foreign_class_in_a_torch_file_is_said(tmp_path):
    state = {"embed_tokens.weight": torch.ones(*WIDE), "lm_head.weight": Wrapped(torch.ones(*WIDE))}
    torch.save(state, tmp_path / "step1.pt")
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is there as a .*Wrapped, which is not read"):
        head_key(open_checkpoint(tmp_path / "step1.pt"))


@pytest.mark.parametrize("embedding", ["embed", "wte", "something"])
def test_names_that_save_model_puts_into_the_metadata(tmp_path, embedding):
    model = nn.Module()
    model.add_module(embedding, nn.Embedding(50, 16))
    model.add_module("lm_head", nn.Linear(16, 50, bias=False))
    model.lm_head.weight = model.get_submodule(embedding).weight
    save_model(model, str(tmp_path / "model.safetensors"))
    checkpoint = open_checkpoint(tmp_path)
    found = head_key(checkpoint)
    assert found.key == "lm_head.weight"
    assert found.tied
    assert torch.equal(checkpoint.read(found.key), model.lm_head.weight)


def piece(folder, number, rows, begin, *, name="shard-{:05d}-model-00001-of-00001.safetensors"):
    info = {key: {"saved_offsets": [begin, 0]} for key in rows}
    save_file(rows, folder / name.format(number), metadata={"DCP_SHARDING_INFO": json.dumps(info)})


def test_shards_that_ranks_wrote_are_put_together(tmp_path):
    head = torch.arange(44.0).reshape(11, 4)
    piece(tmp_path, 1, {"lm_head.weight": head[:6].clone()}, 0)
    piece(tmp_path, 2, {"lm_head.weight": head[6:].clone()}, 6)
    checkpoint = open_checkpoint(tmp_path)
    assert torch.equal(checkpoint.read(head_key(checkpoint).key), head)
    for file in tmp_path.iterdir():
        with pytest.raises(CheckpointError, match="a rank's piece of a distributed checkpoint"):
            open_checkpoint(file)
    (tmp_path / "shard-00001-model-00001-of-00001.safetensors").unlink()
    with pytest.raises(CheckpointError, match="A rank's file is missing"):
        open_checkpoint(tmp_path).read("lm_head.weight")


def test_one_file_that_all_ranks_wrote_is_refused(tmp_path):
    piece(tmp_path, 1, {"lm_head.weight": torch.ones(6, 4)}, 0, name="model-{:05d}-of-00001.safetensors")
    with pytest.raises(CheckpointError, match="wrote it over each other"):
        open_checkpoint(tmp_path)


def test_bytes_that_no_tensor_covers_are_noticed(tmp_path):
    save_file({"lm_head.weight": torch.zeros(5, 4)}, tmp_path / "model.safetensors")
    with (tmp_path / "model.safetensors").open("ab") as file:
        file.write(bytes(16))
    with pytest.raises(CheckpointError, match="bytes 80 to 96 belong to no tensor"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.uint8], ids=str)
def test_a_quantised_checkpoint_is_one_finding_and_the_others_go_on(tmp_path, dtype):
    for step, kind in ((0, torch.float32), (1, dtype), (2, torch.float32)):
        (tmp_path / f"step{step}").mkdir()
        head = (torch.arange(48.0).reshape(12, 4) + 0.1 * step).to(kind)
        save_file({"lm_head.weight": head}, tmp_path / f"step{step}" / "model.safetensors")
    found = audit_suite(list_suite(tmp_path))
    assert [(f.kind, f.steps) for f in found.findings] == [("unreadable", (1,))]
    assert "quantised" in found.findings[0].message
    assert "lm_head.weight (known by its name)" in found.render()


def test_a_file_says_which_matrix_was_taken_and_why(tmp_path):
    save_file(
        {"embed_in.weight": torch.ones(5, 2), "final_linear.weight": torch.zeros(5, 2)}, tmp_path / "a.safetensors"
    )
    found = open_matrix(tmp_path / "a.safetensors")
    assert found.key == "final_linear.weight"
    assert found.notes == ("final_linear.weight was taken: known by its name",)
