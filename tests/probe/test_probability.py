import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from trainhooks.analyze.average_probability import average_probability
from trainhooks.model.hooks import watch_head_input
from trainhooks.probe import fit_probe, splitmix64
from trainhooks.probe.positions import HiddenSample, choose_positions
from trainhooks.probe.probability import mean_hidden_r2, probability_sums, split_half_reliability


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def twin(embedding, hidden, bias=None):
    """Mean softmax over all positions, one position at a time, in numpy's float64."""
    embedding, hidden = np.asarray(embedding, dtype=np.float64), np.asarray(hidden, dtype=np.float64)
    alpha = np.zeros(len(embedding))
    for state in hidden:
        logits = embedding @ state + (0 if bias is None else np.asarray(bias, dtype=np.float64))
        p = np.exp(logits - logits.max())
        alpha += p / p.sum()
    return alpha / len(hidden)


class LM(nn.Module):
    """Embedding, a dropped-out block, norm and a head with a bias."""

    def __init__(self, vocab=30, dim=6, *, head_bias=True):
        super().__init__()
        self.embed = nn.Embedding(vocab, dim)
        self.block = nn.Linear(dim, dim)
        self.drop = nn.Dropout(0.3)
        self.norm = nn.LayerNorm(dim)
        self.lm_head = nn.Linear(dim, vocab, bias=head_bias)
        with torch.no_grad():
            for seed, parameter in enumerate(self.parameters()):
                parameter.copy_(draw(*parameter.shape, seed=seed))

    def states(self, ids):
        hidden = self.embed(ids)
        return self.norm(hidden + torch.tanh(self.drop(self.block(hidden))))

    def forward(self, ids=None, attention_mask=None, *, input_ids=None):
        return self.lm_head(self.states(input_ids if ids is None else ids))


def tokens(sequences=7, length=9, *, vocab=30, seed=0):
    return torch.randint(vocab, (sequences, length), generator=torch.Generator().manual_seed(seed))


# -- sums ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 3e-6), (torch.bfloat16, 3e-6)]
)
def test_sums_agree_with_the_twin(dtype, tolerance):
    embedding, hidden, bias = draw(50, 8, dtype=dtype), draw(33, 8, seed=1, dtype=dtype), draw(50, seed=2, dtype=dtype)
    sums = probability_sums(embedding, hidden, bias=bias)
    expected = twin(embedding.double(), hidden.double(), bias.double())
    assert np.abs(np.log(expected) - sums.log_alpha.numpy()).max() < tolerance
    assert torch.allclose(sums.mean_hidden, hidden.double().mean(0), atol=tolerance)
    assert (float(sums.positions), float(sums.excluded)) == (33, 0)


def test_blocks_and_merges_change_nothing_beyond_rounding():
    embedding, hidden = draw(50, 8, dtype=torch.float32), draw(33, 8, seed=1, dtype=torch.float32)
    whole = probability_sums(embedding, hidden)
    for elements in (1, 150, 10**9):
        assert torch.allclose(probability_sums(embedding, hidden, block_elements=elements).log_alpha, whole.log_alpha)
    merged = probability_sums(embedding, hidden[:5]) + probability_sums(embedding, hidden[5:])
    assert torch.allclose(merged.log_alpha, whole.log_alpha, atol=1e-6)
    assert torch.allclose(merged.mean_hidden, whole.mean_hidden, atol=1e-6)
    with pytest.raises(ValueError, match="two models"):
        _ = whole + probability_sums(embedding[:9], hidden)


def test_a_constant_added_to_all_rows_changes_nothing():
    embedding, hidden = draw(50, 8), draw(33, 8, seed=1)
    shifted = probability_sums(embedding + draw(8, seed=3), hidden)
    assert torch.allclose(shifted.log_alpha, probability_sums(embedding, hidden).log_alpha, atol=1e-12)


def test_a_head_of_zeros_is_uniform():
    hidden = draw(20, 4)
    sums = probability_sums(torch.zeros(10, 4), hidden)
    assert torch.allclose(sums.log_alpha, torch.full((10,), -math.log(10), dtype=torch.float64), atol=1e-7)
    assert mean_hidden_r2(torch.zeros(10, 4), sums).isnan()
    half = probability_sums(torch.zeros(10, 4), hidden[:3])
    assert split_half_reliability(half, sums).isnan()
    assert fit_probe(draw(10, 4), -sums.log_alpha).r2.isnan()


def test_one_context_is_algebra():
    embedding = draw(300, 8)
    sums = probability_sums(embedding, draw(1, 8, seed=1))
    assert float(fit_probe(embedding, -sums.log_alpha).heldout_r2) == pytest.approx(1, abs=1e-12)
    assert float(mean_hidden_r2(embedding, sums)) == pytest.approx(1, abs=1e-12)


def test_an_untrained_model_has_a_high_r2_and_a_small_variance():
    embedding = 0.02 * draw(2000, 64)
    hidden = nn.functional.layer_norm(draw(400, 64, seed=1) + draw(64, seed=2), (64,))
    y = -probability_sums(embedding, hidden).log_alpha
    fit = fit_probe(embedding, y)
    assert float(fit.heldout_r2) > 0.9
    assert float(fit.variance) < 0.05


def test_rare_tokens_do_not_underflow():
    embedding = torch.tensor([[300.0], [0.0], [-300.0]])
    sums = probability_sums(embedding, torch.ones(4, 1))
    assert torch.allclose(sums.log_alpha, torch.tensor([0.0, -300, -600], dtype=torch.float64))


def test_positions_that_are_not_finite_are_left_out_and_counted():
    embedding, hidden = draw(20, 4), draw(9, 4, seed=1)
    broken = torch.cat([hidden, hidden[:2]])
    broken[9, 1], broken[10, 0] = torch.nan, torch.inf
    sums, clean = probability_sums(embedding, broken), probability_sums(embedding, hidden)
    assert torch.equal(sums.log_alpha, clean.log_alpha)
    assert torch.allclose(sums.mean_hidden, clean.mean_hidden)
    assert (float(sums.positions), float(sums.excluded)) == (9, 2)
    embedding[3, 0] = torch.nan
    none = probability_sums(embedding, hidden)
    assert (float(none.positions), float(none.excluded)) == (0, 9)
    assert none.log_alpha.isnan().all()
    assert none.mean_hidden.isnan().all()


def test_a_token_that_is_ruled_out_has_no_probability():
    bias = torch.tensor([0.0, 0.0, -torch.inf])
    sums = probability_sums(draw(3, 4), draw(5, 4, seed=1), bias=bias)
    assert sums.log_alpha[2] == -torch.inf
    assert float(sums.log_alpha.exp().sum()) == pytest.approx(1)
    assert mean_hidden_r2(draw(3, 4), sums).isfinite()


def test_reliability_is_the_correlation_of_the_halves():
    embedding = draw(40, 5)
    even, odd = (probability_sums(embedding, draw(n, 5, seed=n)) for n in (6, 8))
    mask = torch.arange(40) % 4 > 0
    expected = np.corrcoef(even.log_alpha[mask].numpy(), odd.log_alpha[mask].numpy())[0, 1]
    assert float(split_half_reliability(even, odd, mask=mask)) == pytest.approx(expected, abs=1e-12)
    assert split_half_reliability(even, probability_sums(embedding, torch.empty(0, 5))).isnan()


# -- which positions -----------------------------------------------------------------------------------------------


def test_positions_are_chosen_by_hash_alone():
    chosen = choose_positions(first=3, sequences=4, length=50, count=6)
    for row, sequence in zip(chosen.tolist(), range(3, 7), strict=True):
        seed = splitmix64(torch.tensor([sequence]))
        order = sorted(range(50), key=lambda position, seed=seed: int(splitmix64(seed + position)))
        assert row == order[:6]


@pytest.mark.parametrize(("sequences", "each"), [(64, {16}), (8, {128}), (3, {128}), (48, {21, 22}), (2000, {1})])
def test_the_sample_is_spread_over_the_sequences(sequences, each):
    sample = HiddenSample()
    sample.add(draw(sequences, 200, 2))
    _, counts = sample.sequence.unique(return_counts=True)
    assert set(counts.tolist()) == each
    assert len(sample.rows) == min(1024, 128 * sequences)
    assert len(counts) == min(sequences, 1024)


def test_micro_batches_give_the_sample_of_the_whole():
    hidden = draw(11, 13, 3)
    whole, parts = (HiddenSample(positions_per_sequence=5, max_positions=30) for _ in range(2))
    whole.add(hidden)
    for first, last in ((0, 1), (1, 6), (6, 11)):
        parts.add(hidden[first:last])
    assert torch.equal(whole.rows, parts.rows)
    assert torch.equal(whole.sequence, parts.sequence)
    assert all((hidden[s] == row).all(1).any() for s, row in zip(whole.sequence.tolist(), whole.rows, strict=True))
    assert parts.sequences == 11


def test_two_axes_are_one_sequence_and_limits_are_checked():
    sample = HiddenSample(positions_per_sequence=4)
    sample.add(draw(9, 3, dtype=torch.bfloat16))
    assert sample.rows.shape == (4, 3)
    assert sample.rows.dtype == torch.float32
    assert sample.sequence.tolist() == [0] * 4
    with pytest.raises(ValueError, match="max_positions is 0"):
        HiddenSample(max_positions=0)


# -- the hook ------------------------------------------------------------------------------------------------------


def train(model, *, on_hidden=None, steps=3):
    if on_hidden is not None:
        watch_head_input(model.lm_head, on_hidden)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    with torch.random.fork_rng():
        torch.manual_seed(5)
        for step in range(steps):
            ids = tokens(seed=step)
            loss = cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses, torch.get_rng_state(), [p.detach().clone() for p in model.parameters()]


def test_training_with_the_hook_is_the_same_to_the_bit():
    sample = HiddenSample(max_positions=16)
    plain, watched = train(LM()), train(LM(), on_hidden=sample.add)
    assert plain[0] == watched[0]
    assert torch.equal(plain[1], watched[1])
    assert all(torch.equal(a, b) for a, b in zip(plain[2], watched[2], strict=True))
    assert sample.sequences == 21


def test_only_training_passes_are_seen():
    model, seen = LM(), []
    handle = watch_head_input(model.lm_head, seen.append)
    ids = tokens()
    model(ids)
    assert [tuple(h.shape) for h in seen] == [(7, 9, 6)]
    assert not seen[0].requires_grad
    with torch.no_grad():
        model(ids)
    model.eval()(ids)
    model.train()
    model.lm_head(input=model.states(ids))
    assert len(seen) == 2
    handle.remove()
    model(ids)
    assert len(seen) == 2


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_passes_count_once(reentrant):
    model, seen = LM(), []
    watch_head_input(model.lm_head, seen.append)
    for expected in (1, 2):
        states = model.states(tokens())
        checkpoint(model.lm_head, states, use_reentrant=reentrant).sum().backward()
        assert len(seen) == expected


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's own, where it resumes after the graph break
def test_the_hook_fires_in_a_compiled_model():
    model, seen = LM(), []
    watch_head_input(model.lm_head, lambda hidden: seen.append(hidden.clone()))
    compiled = torch.compile(model, backend="eager")
    for _ in range(2):
        compiled(tokens()).sum().backward()
    assert len(seen) == 2


# -- offline -------------------------------------------------------------------------------------------------------


def test_offline_agrees_with_the_twin_and_leaves_the_model_as_it_was():
    model = LM().train()
    model.norm.eval()
    ids = tokens()
    found = average_probability(model, [ids[:2], ids[2:5], {"input_ids": ids[5:]}])
    assert [m.training for m in (model, model.drop, model.norm)] == [True, True, False]
    assert not model.lm_head._forward_pre_hooks
    model.eval()
    hidden = model.states(ids).detach()
    bias = model.lm_head.bias.detach()
    assert np.allclose(found.alpha, twin(model.lm_head.weight.detach(), hidden.flatten(0, 1), bias), rtol=1e-5)
    assert torch.allclose(found.alpha, model(ids).softmax(-1).mean((0, 1)).double(), rtol=1e-5)
    assert torch.allclose(found.mean_hidden, hidden.double().mean((0, 1)), atol=1e-6)
    assert (found.positions, found.sequences, found.excluded) == (63, 7, 0)
    halves = [twin(model.lm_head.weight.detach(), hidden[i::2].flatten(0, 1), bias) for i in (0, 1)]
    assert found.reliability == pytest.approx(np.corrcoef(*np.log(halves))[0, 1], abs=1e-5)


def test_offline_leaves_padding_out():
    model, ids = LM().eval(), tokens(3, 6)
    mask = torch.ones(3, 6, dtype=torch.int64)
    mask[0, 2:] = 0
    found = average_probability(model, [{"input_ids": ids, "attention_mask": mask}])
    expected = model(ids).softmax(-1)[mask.bool()].mean(0)
    assert torch.allclose(found.alpha, expected.double(), rtol=1e-5)
    assert found.positions == 14
    with pytest.raises(ValueError, match=r"attention_mask is \(3, 5\)"):
        average_probability(model, [{"input_ids": ids, "attention_mask": mask[:, :5]}])


def test_offline_says_what_is_missing():
    model = LM()
    with pytest.raises(ValueError, match="0 sequences hold no position"):
        average_probability(model, [])
    model.forward = lambda ids: model.states(ids) @ model.lm_head.weight.T
    with pytest.raises(ValueError, match=r"lm_head\.weight\) was not called"):
        average_probability(model, [tokens()])
    assert model.training
