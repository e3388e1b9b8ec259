import pytest
import torch
from loops import TinyLM
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
)

import trainhooks as th
from trainhooks.model import core_model, find_output_embedding, parameter_groups


def causal_lm(config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config)


def neox():
    return causal_lm(
        GPTNeoXConfig(
            vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=32, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip


def gpt2():
    return causal_lm(
        GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0)
    )


def llama():
    return causal_lm(
        LlamaConfig(
            vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            bos_token_id=0, eos_token_id=0, tie_word_embeddings=False,
        )
    )  # fmt: skip


class Plain(nn.Module):
    def __init__(self, head_name="lm_head"):
        super().__init__()
        self.embed = nn.Embedding(50, 8)
        self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])
        self.norm = nn.LayerNorm(8)
        self.add_module(head_name, nn.Linear(8, 50))


def test_gpt_neox_has_an_untied_head_and_a_final_norm():
    model = neox()
    head = th.find_output_embedding(model)
    assert head.weight is model.get_output_embeddings().weight
    assert not head.tied
    assert head.bias is None
    assert head.norm_bias is model.gpt_neox.final_layer_norm.bias
    assert head.name in {"lm_head.weight", "embed_out.weight"}


def test_gpt2_is_tied_to_its_input_embedding():
    model = gpt2()
    head = th.find_output_embedding(model)
    assert head.tied
    assert head.weight is model.transformer.wte.weight
    assert head.name == "transformer.wte.weight"
    assert head.norm_bias is model.transformer.ln_f.bias


def test_rms_norm_has_no_bias():
    head = th.find_output_embedding(llama())
    assert head.norm_weight is not None
    assert head.norm_bias is None


def test_plain_module_is_found_by_name_with_bias():
    model = Plain()
    head = th.find_output_embedding(model)
    assert head.weight is model.lm_head.weight
    assert head.bias is model.lm_head.bias
    assert head.norm_name == "norm"


def test_what_cannot_be_decided_is_asked_for_with_candidates():
    model = Plain("scores")
    with pytest.raises(ValueError, match=r"scores 50 x 8"):
        th.find_output_embedding(model)
    assert th.find_output_embedding(model, name="scores").weight is model.scores.weight
    assert th.find_output_embedding(model, name="scores.weight").weight is model.scores.weight
    with pytest.raises(ValueError, match="no module with a weight matrix"):
        th.find_output_embedding(model, name="norm")


def test_two_heads_are_not_decided():
    model = Plain()
    model.add_module("output", nn.Linear(8, 50))
    with pytest.raises(ValueError, match="several could be it"):
        th.find_output_embedding(model)


def test_no_matrix_at_all():
    with pytest.raises(ValueError, match="none has a matrix"):
        th.find_output_embedding(nn.Sequential(nn.ReLU()))


class Wrapped(nn.Module):
    """Keeps the model where FSDP1 keeps it."""

    def __init__(self, inner):
        super().__init__()
        self._fsdp_wrapped_module = inner


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, torch.compile, Wrapped, lambda m: nn.DataParallel(torch.compile(m))],
    ids=["data-parallel", "compile", "fsdp1", "both"],
)  # fmt: skip
def test_wrappers_are_looked_through(wrap):
    model = neox()
    bare, wrapped = th.find_output_embedding(model), th.find_output_embedding(wrap(model))
    assert wrapped.weight is bare.weight
    assert wrapped.name == bare.name
    assert core_model(wrap(model)) is model


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
@pytest.mark.filterwarnings("ignore")  # lightning's own imports warn
def test_lightning_modules_are_looked_through(package):
    pl = pytest.importorskip(package)

    class Module(pl.LightningModule):
        def __init__(self, model):
            super().__init__()
            self.net = model
            self.scale = nn.Linear(1, 1)

    model = neox()
    module = Module(torch.compile(model))
    assert core_model(module) is model
    assert th.find_output_embedding(module).name == th.find_output_embedding(model).name


def test_groups_cover_every_parameter_once():
    model = neox()
    groups = parameter_groups(model, th.find_output_embedding(model))
    assert list(groups) == ["whole", "embedding", "layers.0", "layers.1", "final_norm", "output_embedding"]
    parts = [id(p) for name, members in groups.items() if name != "whole" for _, p in members]
    assert sorted(parts) == sorted(id(p) for p in model.parameters())


def test_a_tied_matrix_is_in_both_groups():
    model = gpt2()
    groups = parameter_groups(model, th.find_output_embedding(model))
    assert groups["output_embedding"][0][1] is model.transformer.wte.weight
    assert any(p is model.transformer.wte.weight for _, p in groups["embedding"])


def test_patterns_add_groups():
    model = neox()
    head = th.find_output_embedding(model)
    groups = parameter_groups(model, head, patterns={"attention": "*.attention.*", "mlp": ["*.mlp.*"]})
    assert all(".attention." in name for name, _ in groups["attention"])
    with pytest.raises(ValueError, match="no parameter matches"):
        parameter_groups(model, head, patterns={"x": "nothing*"})
    with pytest.raises(ValueError, match="is there already"):
        parameter_groups(model, head, patterns={"whole": "*"})


def test_a_matrix_of_another_height_is_no_head():
    model = nn.Module()
    model.embed = nn.Embedding(50, 8)
    model.attn = nn.Module()
    model.attn.output = nn.Linear(8, 8)
    model.scores = nn.Linear(8, 50)
    with pytest.raises(ValueError, match="scores 50 x 8"):
        th.find_output_embedding(model)


def test_a_parametrized_head_is_refused():
    model = Plain()
    nn.utils.parametrizations.weight_norm(model.lm_head)
    with pytest.raises(ValueError, match=r"no parameter|no module"):
        th.find_output_embedding(model)


def test_gemmas_norm_multiplies_by_one_plus_its_weight():
    config = GemmaConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
        intermediate_size=32,
    )  # fmt: skip
    head = th.find_output_embedding(causal_lm(config))
    assert head.norm_offset == 1.0
    assert torch.equal(head.norm_scale, torch.ones(16))
    assert th.find_output_embedding(neox()).norm_offset == 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_norm_of_another_precision_is_judged_beside_a_large_bias(dtype):
    model = neox()
    norm = model.base_model.final_layer_norm
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-1, 1, len(norm.weight)))
        norm.bias.fill_(30.0)
    assert th.find_output_embedding(model.to(dtype)).norm_offset == 0.0
    assert norm.weight.dtype == dtype


def test_barts_input_norm_is_not_its_last_norm():
    config = BartConfig(
        vocab_size=64, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=32,
    )  # fmt: skip
    assert th.find_output_embedding(BartForConditionalGeneration(config)).norm_name is None


def test_a_submodule_called_module_is_no_wrapper():
    model = Plain()
    outer = nn.Module()
    outer.scale = nn.Parameter(torch.ones(1))
    outer.module = model
    head = th.find_output_embedding(outer)
    groups = parameter_groups(outer, head)
    assert head.name == "module.lm_head.weight"
    assert any(p is outer.scale for _, p in groups["whole"])


@pytest.fixture
def one_process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process_group")
def test_ddp_is_looked_through():
    model = neox()
    wrapped = th.find_output_embedding(nn.parallel.DistributedDataParallel(model))
    assert wrapped.weight is th.find_output_embedding(model).weight
    assert wrapped.name == th.find_output_embedding(model).name


def test_names_inside_fabric_are_clean():
    fabric = pytest.importorskip("lightning.fabric").Fabric(accelerator="cpu", devices=1)
    model = TinyLM()
    wrapped, _ = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))
    head = find_output_embedding(wrapped)
    assert head.name == "lm_head.weight"
    assert list(parameter_groups(wrapped, head)) == list(parameter_groups(model, find_output_embedding(model)))
    assert [name for name, _ in parameter_groups(wrapped, head)["whole"]] == [n for n, _ in model.named_parameters()]


def test_a_head_that_is_wrapped_alone_is_the_one_inside():
    model = TinyLM()
    inside = model.lm_head
    model.lm_head = torch.compile(inside)
    for name in ("lm_head", None):
        head = find_output_embedding(model, name=name)
        assert head.module is inside
        assert head.weight is inside.weight
