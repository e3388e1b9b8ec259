from types import SimpleNamespace

import pytest
import torch
from synthetic_deletion import planted
from synthetic_lm import llama, neox, target, texts

from trainhooks.corpora.tokenizers import Tokenizer
from trainhooks.intervene.contexts import Contexts, collect_contexts
from trainhooks.intervene.deletion.orders import ORDERS, deletion_orders, probability_slope
from trainhooks.intervene.deletion.prune import check_savable, code_labels, prune, pruned_target
from trainhooks.intervene.deletion.variants import VARIANTS, edited_head
from trainhooks.intervene.target import Target


def halves(**options):
    weight, hidden, labels, document = planted(**options)
    cut = len(hidden) // 2
    first = Contexts(hidden[:cut], labels[:cut], document[:cut])
    return weight, first, Contexts(hidden[cut:], labels[cut:], document[cut:] - document[cut])


def test_deletion_finds_exactly_the_unused_dimensions():
    weight, calibration, test = halves()
    slope = probability_slope(weight, calibration.hidden)
    order = deletion_orders(weight, calibration.hidden, slope=slope, names=("ascending",), random=0)[0]
    assert set(order.dimensions[:6].tolist()) == set(range(6))
    found = prune(weight, calibration=calibration, test=test, fractions=(0.25, 0.5), random=3)
    zero = found.curves.mean()[0, 0]
    assert float(zero[0, 0]) < 1e-5
    assert float(zero[1, 0]) > 1e-3


def test_saliency_gains_significantly_and_a_permuted_slope_does_not():
    weight, calibration, test = halves()
    options = {"calibration": calibration, "test": test, "variants": ("zero",), "orders": ("ascending",)}
    own = prune(weight, **options).gains["zero"]
    assert own.significant
    assert own.js.above_zero
    slope = probability_slope(weight, calibration.hidden)
    # saliency is |A| std(E): both factors have to lose their tie to the dimensions
    spread = weight.std(0).clamp_min(1e-6)
    shuffle = torch.randperm(24, generator=torch.Generator().manual_seed(5))
    permuted = (slope.abs() * spread)[shuffle] / spread
    assert not prune(weight, slope=permuted, **options).gains["zero"].significant


def test_the_result_says_itself_as_text_and_as_numbers():
    weight, calibration, test = halves()
    options = {"calibration": calibration, "test": test, "random": 3, "fractions": (0.3, 0.6)}
    found = prune(weight, **options)
    assert found.to_dict() == prune(weight, **options).to_dict()
    assert "compensated/unique" in found.render()
    assert "rank_k" in found.render()
    labels = [code["code"] for code in found.to_dict()["codes"]]
    assert labels == code_labels(ORDERS, VARIANTS, random=3)


def test_unknown_orders_and_variants_are_named():
    weight, calibration, test = halves()
    with pytest.raises(ValueError, match="unknown order 'size'"):
        prune(weight, calibration=calibration, test=test, orders=("size",))
    with pytest.raises(ValueError, match="unknown variant"):
        prune(weight, calibration=calibration, test=test, variants=("half",))


@pytest.mark.parametrize("untie", [True, False])
def test_a_pruned_model_is_saved_and_says_the_same_when_loaded(tmp_path, untie):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=400, hidden_size=24, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    config.tie_word_embeddings = True
    model = transformers.LlamaForCausalLM(config).eval().requires_grad_(False)
    backend = SimpleNamespace(save=lambda path: None, get_vocab=lambda **_: {"last": 399})
    tokenizer = Tokenizer(backend)
    weight, calibration, test = halves()
    model.lm_head.weight.copy_(weight)
    target = Target(model, tokenizer, weight, None, "planted", tied=True)
    found = prune(weight, calibration=calibration, test=test, random=0, fractions=(0.5,))
    pruned = pruned_target(target, found, code="zero/ascending", fraction=0.5, untie=untie)
    pruned.save(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert int((loaded.lm_head.weight == 0).all(0).sum()) == 12
    assert torch.equal(loaded.model.embed_tokens.weight, weight) == untie
    ids = torch.arange(8)[None]
    assert torch.equal(loaded(input_ids=ids).logits, pruned.model(input_ids=ids).logits)
    assert torch.equal(model.lm_head.weight, weight)
    with pytest.raises(ValueError, match="zero/ascending"):
        pruned_target(target, found, code="zero/none", fraction=0.5)


def test_context_means_are_held_by_a_norm_with_bias_exactly(tmp_path):
    transformers = pytest.importorskip("transformers")
    one = target(neox())
    first, second = (collect_contexts(one, texts(12, seed=i), context_length=30) for i in (0, 1))
    found = prune(one.weight, calibration=first, test=second, variants=("context_mean",), random=0, fractions=(0.5,))
    code = found.curves.codes[0]
    pruned_target(one, found, code=code.label, fraction=0.5).save(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.arange(20)[None]
    weight, bias = edited_head(one.weight, code=code, deleted=8)
    expected = one.with_head(weight, bias=bias).model(input_ids=ids).logits
    torch.testing.assert_close(loaded(input_ids=ids).logits, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(expected, one.model(input_ids=ids).logits, atol=1e-2)


def test_what_cannot_be_saved_is_known_before_the_run():
    one = target(llama())
    known = code_labels(("norm",), ("zero", "context_mean"), random=1, seed=4)
    assert known == ["zero/norm", "zero/random-4", "context_mean/norm", "context_mean/random-4", "rank_k"]
    check_savable(one, code="zero/norm", fraction=0.3, known=known)
    for code, fraction, said in (
        ("context_mean/norm", 0.3, "zero or compensated"),
        ("zero/size", 0.3, "got code"),
        ("zero/norm", 1.5, "at 1.5"),
    ):
        with pytest.raises(ValueError, match=said):
            check_savable(one, code=code, fraction=fraction, known=known)
