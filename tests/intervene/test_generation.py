import sys
from types import SimpleNamespace

import pytest
import torch
from synthetic_lm import llama, neox, target, texts

from trainhooks.intervene import generation
from trainhooks.intervene.generation import (
    distinct_n,
    draw_prompts,
    generate,
    repetition,
    score_generation,
    self_scores,
    unmodified_text,
)


def test_n_grams_agree_with_counting_by_hand():
    tokens = torch.tensor([[1, 2, 1, 2, 1], [3, 3, 3, 3, 3]])
    assert distinct_n(tokens, n=2) == pytest.approx(3 / 8)
    assert repetition(tokens, n=2) == pytest.approx(((1 - 2 / 4) + (1 - 1 / 4)) / 2)
    assert repetition(torch.arange(10)[None], n=4) == 0
    assert distinct_n(tokens, n=6) != distinct_n(tokens, n=6)
    with pytest.raises(ValueError, match="one token or more"):
        distinct_n(tokens, n=0)


def test_names_of_tokens_do_not_matter():
    tokens = torch.randint(0, 5, (6, 30), generator=torch.Generator().manual_seed(0))
    renamed = torch.tensor([9, 4, 7, 1, 3])[tokens]
    assert distinct_n(tokens) == distinct_n(renamed)
    assert repetition(tokens, n=3) == repetition(renamed, n=3)


def test_the_self_score_needs_seeds_and_must_be_able_to_tell(monkeypatch):
    features = [torch.randn(30, 4, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    with pytest.raises(ValueError, match="3 or more"):
        self_scores(features[:2])
    monkeypatch.setattr(generation, "mauve_score", lambda a, b, seed: 0.95)
    assert self_scores(features) == (0.95,) * 3
    monkeypatch.setattr(generation, "mauve_score", lambda a, b, seed: 0.85)
    with pytest.raises(ValueError, match=r"0\.850"):
        self_scores(features)


def test_too_few_texts_and_a_missing_extra_are_known_before_anything_is_generated(monkeypatch):
    unused = torch.nn.Module()  # has no forward: it must not run
    with pytest.raises(ValueError, match="got 19 texts"):
        unmodified_text(unused, torch.zeros(19, 2, dtype=torch.int64), length=3)
    monkeypatch.setitem(sys.modules, "mauve", None)
    with pytest.raises(ImportError, match=r"trainhooks\[generation\]"):
        unmodified_text(unused, torch.zeros(20, 2, dtype=torch.int64), length=3)


@pytest.mark.parametrize("model", [llama(), neox()], ids=["llama", "neox"])
def test_the_cache_changes_no_token(model):
    class Uncached(torch.nn.Module):
        def forward(self, input_ids):
            return SimpleNamespace(logits=model(input_ids=input_ids, use_cache=False).logits)

    prompts = torch.randint(0, 40, (70, 4), generator=torch.Generator().manual_seed(0))
    text = generate(model, prompts, length=12, seed=3)
    assert torch.equal(text, generate(Uncached(), prompts, length=12, seed=3))
    assert not torch.equal(text, generate(model, prompts, length=12, seed=4))


def test_prompts_are_beginnings_of_windows_of_the_test_text():
    one, documents = target(llama()), texts(6, words=40)
    prompts = draw_prompts(one, documents, samples=10, context_length=16)
    ids = one.tokenizer.encode(documents)
    starts = {tuple(row[at : at + 2]) for row in ids for at in range(0, 40, 16)}
    assert prompts.shape == (10, 2)
    assert all(tuple(row) in starts for row in prompts.tolist())
    with pytest.raises(ValueError, match="have 18 windows"):
        draw_prompts(one, documents, samples=40, context_length=16)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_unchanged_model_scores_as_itself_and_a_broken_one_far_below():
    pytest.importorskip("mauve", reason="needs mauve-text")
    one = target(llama())
    prompts = torch.randint(0, 40, (200, 2), generator=torch.Generator().manual_seed(0))
    reference = unmodified_text(one.model, prompts, length=4)
    same = score_generation(one.model, one.model, reference=reference)
    assert min(same.mauve) > 0.9
    assert same.distinct[0] == same.distinct[1]
    broken = one.with_head(one.weight, bias=torch.eye(40)[3] * 50)  # says w3 and nothing else
    changed = score_generation(one.model, broken.model, reference=reference)
    assert max(changed.mauve) < 0.2
    assert changed.distinct[1] < 0.01
    assert "unmodified against unmodified" in changed.render()


def test_generation_follows_the_distribution_and_its_seed():
    class Certain(torch.nn.Module):
        def forward(self, input_ids):
            logits = torch.nn.functional.one_hot((input_ids + 1) % 5, 5) * 1e4
            return SimpleNamespace(logits=logits.float())

    before = torch.get_rng_state()
    assert generate(Certain(), torch.tensor([[0], [3]]), length=3).tolist() == [[1, 2, 3], [4, 0, 1]]
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_mauve_is_high_for_one_distribution_and_low_for_two():
    pytest.importorskip("mauve", reason="needs mauve-text")
    first, second = (torch.randn(200, 4, generator=torch.Generator().manual_seed(i)) + 3 for i in (0, 1))
    assert generation.mauve_score(first, second) > 0.8
    assert generation.mauve_score(first, -second) < 0.1
    with pytest.raises(ValueError, match="20 in each arm"):
        generation.mauve_score(first[:5], second[:5])
