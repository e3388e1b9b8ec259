"""Heads that are not their weight: the effective matrix is recorded, or the head is refused by name."""

import warnings

import numpy as np
import pytest
import torch
from loops import DIM, VOCAB, TinyLM, batches, train
from torch import nn

import trainhooks as th
from trainhooks.model import find_output_embedding, parameter_groups

HEAD = ["lm_head"]
ADAPTERS = {
    "IA3Config": {"feedforward_modules": []},
    "LoHaConfig": {"r": 2},
    "LoKrConfig": {"r": 2},
    "VeraConfig": {"r": 2},
    "OFTConfig": {"oft_block_size": 4, "r": 0},
    "BOFTConfig": {"boft_block_size": 4},
    "HRAConfig": {"r": 2},
    "ShiraConfig": {"r": 2},
    "MissConfig": {"r": 2},
    "VBLoRAConfig": {"r": 2, "vector_length": 4, "num_vectors": 8, "topk": 2},
    "AdaLoraConfig": {"total_step": 20, "init_r": 4, "target_r": 2},
    "FourierFTConfig": {"n_frequency": 20},
    "TrainableTokensConfig": {"token_indices": [1, 2]},
    "LoraConfig": {"r": 2, "lora_bias": True, "lora_dropout": 0.5},
}


def adapted(name, *, model=None, **settings):
    peft = pytest.importorskip("peft")
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")  # peft's own words on settings
        torch.manual_seed(3)
        config = getattr(peft, name)(target_modules=HEAD, **settings)
        return peft.get_peft_model(model or TinyLM(), config)


def run(model, *, recorded=True, steps=4, **settings):
    """The model's parameters after training, and the records."""
    memory = th.MemorySink()
    torch.manual_seed(7)  # dropout
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    if not recorded:
        train(model, batches(steps), optimizer=optimizer)
    else:
        with th.Recorder(model, sinks=[memory], **settings) as recorder:
            train(model, batches(steps), recorder, optimizer=optimizer)
    return [p.detach().clone() for p in model.parameters() if p.requires_grad], memory.records


@pytest.mark.filterwarnings("ignore::UserWarning")  # foreign ones
@pytest.mark.parametrize("name", ADAPTERS)
def test_the_effective_matrix_of_an_adapter_is_recorded_and_training_is_the_same(name, tmp_path):
    model = adapted(name, **ADAPTERS[name])
    after, _ = run(model, store=tmp_path / "run.zarr")
    bare, _ = run(adapted(name, **ADAPTERS[name]), recorded=False)
    assert all(torch.equal(a, b) for a, b in zip(after, bare, strict=True)), "recording changes nothing"
    model.eval()
    layer = find_output_embedding(model).module
    hidden = torch.randn(5, DIM, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        scores = layer(hidden[None])[0] - layer(torch.zeros(1, 1, DIM))[0]
    snapshots = th.open_store(tmp_path / "run.zarr").snapshots
    torch.testing.assert_close(hidden @ torch.tensor(np.asarray(snapshots[-1])).T, scores, rtol=1e-4, atol=1e-5)
    assert not np.array_equal(snapshots[-1], snapshots[0]), "and it moves"


def test_the_bias_is_the_effective_one_too():
    model = adapted("IA3Config", feedforward_modules=[])
    run(model)
    head = find_output_embedding(model).gathered_around()
    factor = model.base_model.model.lm_head.ia3_l["default"].detach()
    assert not torch.equal(factor, torch.ones_like(factor))
    bias = model.base_model.model.lm_head.base_layer.bias.detach() * factor.squeeze()
    torch.testing.assert_close(head.bias, bias)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_a_trained_token_of_a_tied_head_is_seen():
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        small = transformers.LlamaConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=40,
            tie_word_embeddings=True,
        )  # fmt: skip
        config = peft.TrainableTokensConfig(target_modules=["embed_tokens"], token_indices=[3])
        model = peft.get_peft_model(transformers.LlamaForCausalLM(small), config)
    head = find_output_embedding(model)
    before = head.matrix.clone()
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).add_(1.0)
    moved = (find_output_embedding(model).matrix - before).abs().sum(1)
    assert moved.nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("PolyConfig", {"r": 2, "n_tasks": 2}, r"peft\.tuners\.poly"),
        ("LilyConfig", {"r": 2}, r"peft\.tuners\.lily"),
        ("LoraConfig", {"r": 2, "use_dora": True}, "DoRA"),
        ("LoraConfig", {"r": 2, "alora_invocation_tokens": [1], "task_type": "CAUSAL_LM"}, "ALora"),
    ],
)
def test_adapters_that_are_no_one_matrix_are_refused_by_name(name, settings, said):
    class Generating(TinyLM):
        def prepare_inputs_for_generation(self, *args, **kwargs):
            raise NotImplementedError

    model = adapted(name, model=Generating(), **settings)
    with pytest.raises(ValueError, match=said):
        find_output_embedding(model)


class Scaled(nn.Linear):
    """A head whose rows are scaled by a trained vector; it counts its calls and draws random numbers."""

    def __init__(self):
        super().__init__(DIM, VOCAB)
        self.scale = nn.Parameter(torch.linspace(1, 2, VOCAB))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, hidden):
        self.calls += 1
        torch.rand(1)
        return super().forward(hidden) * self.scale


class Capped(nn.Linear):
    def forward(self, hidden):
        return 5 * torch.tanh(super().forward(hidden) / 5)


class Zero(nn.Linear):
    """What cannot be told from a plain head by its output at the beginning."""

    def __init__(self):
        super().__init__(DIM, VOCAB)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, hidden):
        return super().forward(hidden) / 3


class Fused(nn.Linear):
    def forward(self, hidden, labels):
        return nn.functional.cross_entropy(super().forward(hidden), labels)


def with_head(head):
    model = TinyLM()
    model.lm_head = head
    return model


def test_a_head_that_scales_its_rows_is_followed_and_left_as_it_was():
    with torch.random.fork_rng():
        model = with_head(Scaled())
        state = torch.get_rng_state()
        head = find_output_embedding(model)
        matrix, bias = head.matrix, head.gathered_around().bias
        assert torch.equal(torch.get_rng_state(), state)
    assert model.lm_head.calls == 0
    assert model.lm_head.training
    torch.testing.assert_close(matrix, model.lm_head.weight * model.lm_head.scale[:, None])
    torch.testing.assert_close(bias, model.lm_head.bias * model.lm_head.scale)


def test_heads_that_are_no_product_are_refused_or_followed_or_said():
    with pytest.raises(ValueError, match="Capped computes depends on more"):
        find_output_embedding(with_head(Capped(DIM, VOCAB)))
    assert find_output_embedding(with_head(Zero())).how == "asked"
    for narrow in (torch.bfloat16, torch.float16):  # whose rounding would hide the curve
        with pytest.raises(ValueError, match="Capped computes depends on more"):
            find_output_embedding(with_head(Capped(DIM, VOCAB)).to(narrow))
    with pytest.warns(RuntimeWarning, match="Fused cannot be called with hidden states alone"):
        assert find_output_embedding(with_head(Fused(DIM, VOCAB))).how == "weight"


class Int8(torch.Tensor):
    """A quantized tensor as foreign libraries have them: it knows how to become numbers, and little else."""

    @staticmethod
    def __new__(cls, numbers):
        made = torch.Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=numbers.dtype, device=numbers.device)
        made.scale = numbers.abs().amax(1, keepdim=True) / 127
        made.ids = (numbers / made.scale).round().to(torch.int8)
        return made

    def dequantize(self):
        return self.ids * self.scale

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return args[0]
        if function is torch.ops.aten.t.default:
            return args[0].dequantize().t()
        if function is torch.ops.aten.addmm.default:
            return function(*(a.dequantize() if isinstance(a, Int8) else a for a in args))
        raise NotImplementedError(f"{function} in foreign code")


def quantized():
    model = TinyLM()
    model.lm_head.weight = nn.Parameter(Int8(model.lm_head.weight.detach()), requires_grad=False)
    return model


def test_a_quantized_head_is_dequantized():
    model = quantized()
    head = find_output_embedding(model)
    assert head.how == "dequantized"
    assert torch.equal(head.matrix, model.lm_head.weight.dequantize())
    with pytest.warns(RuntimeWarning, match=r"1 quantized parameters \(lm_head\.weight\) are in no group"):
        assert "lm_head.weight" not in dict(parameter_groups(model, head)["whole"])
    with pytest.warns(RuntimeWarning, match="frozen"), pytest.warns(RuntimeWarning, match="in no group"):
        _, records = run(model)
    assert len(records) == 5


def test_integers_that_name_no_way_back_are_refused():
    model = TinyLM()
    model.lm_head.weight = nn.Parameter(torch.ones(VOCAB, DIM, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"Linear holds torch\.int8 .*Leave the head out of the quantization"):
        find_output_embedding(model)


def test_the_head_inside_a_fused_loss_is_found():
    loss = getattr(nn, "LinearCrossEntropyLoss", None)
    if loss is None:
        pytest.skip("this torch has no LinearCrossEntropyLoss")
    model = nn.Module()
    model.embed, model.criterion = nn.Embedding(VOCAB, DIM), loss(DIM, VOCAB)
    assert find_output_embedding(model).name == "criterion.linear.weight"


def test_what_is_no_module_and_what_is_partitioned_are_refused():
    with pytest.raises(ValueError, match=r"the model is a builtins\.dict, which is no torch\.nn\.Module"):
        th.Recorder({})
    model = TinyLM()
    model.lm_head.weight = nn.Parameter(torch.empty(0))
    model.lm_head.weight.ds_id = 1
    with pytest.raises(ValueError, match=r"lm_head\.weight is empty: DeepSpeed ZeRO-3"):
        th.Recorder(model)


def test_a_frozen_matrix_beside_others_that_train_is_said_once():
    model = TinyLM()
    model.lm_head.weight.requires_grad_(False)
    with pytest.warns(RuntimeWarning, match=r"step 0: the output embedding lm_head\.weight is frozen") as said:
        run(model, steps=25)
    assert len(said) == 1


def test_a_matrix_that_no_optimizer_moves_is_said_after_20_updates():
    model, memory = TinyLM(), th.MemorySink()
    others = [p for name, p in model.named_parameters() if not name.startswith("lm_head")]
    optimizer = torch.optim.SGD(others, lr=0.1)
    with (
        pytest.warns(RuntimeWarning, match="step 20: the output embedding has not moved since step 0") as said,
        th.Recorder(model, sinks=[memory]) as recorder,
    ):
        train(model, batches(25), recorder, optimizer=optimizer)
    assert len(said) == 1
    model = TinyLM()
    with th.Recorder(model, sinks=[memory]) as recorder:  # nothing moves: no word
        train(model, batches(25), recorder, optimizer=torch.optim.SGD(model.parameters(), lr=0.0))


def test_hidden_states_that_nobody_shows_are_said_at_the_first_record():
    class Bypassing(TinyLM):
        def forward(self, ids):
            return nn.functional.linear(self.norm(self.embed(ids)), self.lm_head.weight, self.lm_head.bias)

    memory = th.MemorySink()
    model = Bypassing()
    with (
        pytest.warns(RuntimeWarning, match=r"step 1: nothing has entered the head.*recorder\.observe") as said,
        th.Recorder(model, metrics=[th.ProbabilityProbe()], sinks=[memory]) as recorder,
    ):
        train(model, batches(3), recorder)
    assert len(said) == 1
    assert "probability.r2" not in memory.records[-1].values
