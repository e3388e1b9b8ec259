from types import SimpleNamespace

import pytest
import torch

from trainhooks.intervene import generation
from trainhooks.intervene.generation import distinct_n, generate, repetition, score_generation


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


def test_scores_need_seeds_and_a_self_score_that_can_tell(monkeypatch):
    features = [torch.randn(30, 4, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    with pytest.raises(ValueError, match="3 or more"):
        score_generation(features[:2], features[:2])
    monkeypatch.setattr(generation, "mauve_score", lambda a, b, seed: 0.95)
    assert score_generation(features, features).mauve == (0.95,) * 3
    monkeypatch.setattr(generation, "mauve_score", lambda a, b, seed: 0.85)
    with pytest.raises(ValueError, match=r"0\.850"):
        score_generation(features, features)


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
