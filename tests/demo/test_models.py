import sys

import pytest
import torch

from trainhooks.demo.models import PRESETS, build_model

SHAPES = [  # hidden, layers, heads as published for Pythia
    ("14m", 128, 6, 4),
    ("70m", 512, 6, 8),
    ("160m", 768, 12, 12),
]


def closed_form(vocab: int, hidden: int, layers: int) -> int:
    attention = 4 * hidden * hidden + 4 * hidden
    mlp = 8 * hidden * hidden + 5 * hidden
    norms = 4 * hidden
    return 2 * vocab * hidden + layers * (attention + mlp + norms) + 2 * hidden


def test_tiny_has_the_size_it_says() -> None:
    model = build_model("tiny", vocab_size=8192, seed=0)
    assert model.get_output_embeddings().weight.shape == (8192, 256)
    assert model.get_output_embeddings().bias is None
    assert sum(p.numel() for p in model.parameters()) == closed_form(8192, 256, 4) == 7_353_856
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.config.max_position_embeddings == 128


@pytest.mark.parametrize(("size", "hidden", "layers", "heads"), SHAPES)
def test_the_others_have_pythias_shapes(size: str, hidden: int, layers: int, heads: int) -> None:
    preset = PRESETS[size]
    assert (preset.hidden, preset.layers, preset.heads, preset.context) == (hidden, layers, heads, 2048)


def test_a_pythia_is_built_as_published() -> None:
    model = build_model("14m", vocab_size=50277, seed=0)
    config = model.config
    assert sum(p.numel() for p in model.parameters()) == closed_form(50304, 128, 6) == 14_067_712
    assert model.get_output_embeddings().weight.shape == (50304, 128)
    assert (config.intermediate_size, config.max_position_embeddings) == (512, 2048)
    assert config.rope_parameters["partial_rotary_factor"] == 0.25
    assert config.use_parallel_residual


@pytest.mark.parametrize(("vocab_size", "rows"), [(1, 128), (128, 128), (129, 256), (300, 384)])
def test_the_vocabulary_is_rounded_up(vocab_size: int, rows: int) -> None:
    assert build_model("tiny", vocab_size=vocab_size, seed=0).get_output_embeddings().weight.shape[0] == rows


def test_the_embeddings_are_not_tied() -> None:
    model = build_model("tiny", vocab_size=128, seed=0)
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert head.data_ptr() != embedding.data_ptr()
    assert not torch.equal(head, embedding)


def test_the_weights_follow_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = build_model("tiny", vocab_size=128, seed=7).state_dict()
    torch.manual_seed(2)
    torch.rand(3)
    again = build_model("tiny", vocab_size=128, seed=7).state_dict()
    other = build_model("tiny", vocab_size=128, seed=8).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_the_callers_generator_is_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    build_model("tiny", vocab_size=128, seed=0)
    assert torch.equal(torch.rand(4), expected)


def test_a_default_device_or_dtype_changes_nothing() -> None:
    plain = build_model("tiny", vocab_size=128, seed=0).state_dict()
    with torch.device("meta"):
        model = build_model("tiny", vocab_size=128, seed=0)
    assert all(torch.equal(plain[name], value) for name, value in model.state_dict().items())


def test_a_step_lowers_the_loss_from_that_of_a_uniform_guess() -> None:
    model = build_model("tiny", vocab_size=512, seed=0, context=32)
    ids = torch.arange(64).reshape(2, 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PRESETS["tiny"].learning_rate)
    losses = []
    for _ in range(6):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(torch.tensor(512.0).log().item(), abs=0.2)
    assert losses[-1] < losses[0] - 0.5


def test_attention_is_causal() -> None:
    model = build_model("tiny", vocab_size=128, seed=0, context=16).eval()
    ids = torch.arange(16).reshape(1, 16)
    changed = ids.clone()
    changed[0, 10] = 99
    with torch.no_grad():
        difference = (model(input_ids=ids).logits - model(input_ids=changed).logits).abs().amax(dim=-1)[0]
    assert difference[:10].max() < 1e-5 < difference[10:].min()


@pytest.mark.parametrize("name", PRESETS)
def test_the_presets_hold_together(name: str) -> None:
    preset = PRESETS[name]
    assert preset.name == name
    assert preset.hidden % preset.heads == 0
    assert preset.batch_tokens % preset.context == 0
    assert 0 < preset.warmup < preset.steps
    assert 0 < preset.learning_rate < 0.01


def test_an_unknown_size() -> None:
    with pytest.raises(ValueError, match="no model size 'huge': take one of tiny, 14m, 70m, 160m"):
        build_model("huge", vocab_size=128, seed=0)


@pytest.mark.parametrize("settings", [{"vocab_size": 0}, {"vocab_size": 1, "context": 0}])
def test_sizes_below_one(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="needed 1 or more of each"):
        build_model("tiny", seed=0, **settings)


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'trainhooks\[transformers\]'"):
        build_model("tiny", vocab_size=128, seed=0)
