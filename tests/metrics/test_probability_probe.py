from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from metric_states import Tiny, make_state
from torch import nn
from torch.nn.functional import cross_entropy

from trainhooks.metrics.base import State
from trainhooks.metrics.probability_probe import ProbabilityProbe
from trainhooks.model import OutputEmbedding, find_output_embedding
from trainhooks.model.hooks import watch_head_input
from trainhooks.probe import channels, fit_probe, frequency_target, slope_cosine, transfer_r2

VOCAB, DIM = 80, 6
COUNTS = np.random.default_rng(0).permutation((1e5 / np.arange(1, VOCAB + 1)).astype(np.int64))
FIGURES = ("heldout_mse", "heldout_r2", "heldout_spearman", "r2", "variance")


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def state_of(embedding, *, step=1, **parts):
    head = OutputEmbedding(embedding, "lm_head.weight", nn.Linear(1, 1), **parts)
    return State(step=step, model=nn.Linear(1, 1), head=head, groups={})


def log_alpha(embedding, hidden, bias=None):
    """The float64 twin: softmax at every position, averaged."""
    offset = 0 if bias is None else bias.double()
    logits = hidden.double().reshape(-1, hidden.shape[-1]) @ embedding.double().T + offset
    return logits.softmax(1).mean(0).log()


def measured(metric, embedding, hidden, *, step=0, **parts):
    metric.observe(hidden, step=step)
    return metric.compute(state_of(embedding, step=step + 1, **parts))


def test_figures_are_those_of_the_twin_over_all_positions():
    embedding, hidden, bias = draw(VOCAB, DIM), draw(10, 12, DIM, seed=1), draw(VOCAB, seed=2)
    values = measured(ProbabilityProbe(), embedding, hidden, bias=bias)
    y = -log_alpha(embedding, hidden, bias)
    fit = fit_probe(embedding.double(), y)
    for name in FIGURES:
        assert float(values[f"probability.{name}"]) == pytest.approx(float(getattr(fit, name)), abs=1e-5), name
    assert torch.allclose(values["probability.slope"], fit.slope, atol=1e-5)
    np.testing.assert_allclose(values["probability.fold_slope"], fit.fold_slope, atol=1e-5)
    np.testing.assert_allclose(values["probability.fold_intercept"], fit.fold_intercept, atol=1e-5)
    scores = embedding.double() @ hidden.double().mean((0, 1))
    assert float(values["probability.r2_mean_hidden"]) == pytest.approx(
        np.corrcoef(scores.numpy(), y.numpy())[0, 1] ** 2, abs=1e-5
    )
    halves = [log_alpha(embedding, hidden[i::2], bias).numpy() for i in (0, 1)]
    assert float(values["probability.split_half_reliability"]) == pytest.approx(np.corrcoef(*halves)[0, 1], abs=1e-5)
    counts = {name: float(values[f"probability.{name}"]) for name in ("positions", "sequences", "step")}
    assert counts == {"positions": 120, "sequences": 10, "step": 0}


def test_every_variable_has_a_value_of_its_shape():
    for counts in (None, COUNTS):
        metric = ProbabilityProbe(counts)
        parts = {"bias": draw(VOCAB), "norm_bias": draw(DIM)}
        for step in (0, 1):
            values = measured(metric, draw(VOCAB, DIM, seed=step), draw(4, 9, DIM, seed=2), step=step, **parts)
        assert set(values) == {variable.name for variable in metric.variables}
        for variable in metric.variables:
            value = torch.as_tensor(values[variable.name])
            sizes = {"dim": DIM, "fold": 5}
            assert value.shape == tuple(sizes[dim] for dim in variable.dims)
            assert value.isfinite().all()
            assert variable.description
    traps = {v.name: v.description for v in ProbabilityProbe().variables}
    assert all(word in traps["probability.heldout_r2"] for word in ("no evidence alone", "no onset and no lead"))


def test_rows_follow_counts_and_masks():
    embedding, hidden = draw(VOCAB + 5, DIM), draw(6, 9, DIM, seed=1)
    counts = COUNTS.copy()
    counts[7] = 0
    values = measured(ProbabilityProbe(counts, exclude=[3], vocab_size=VOCAB), embedding, hidden)
    mask = torch.arange(VOCAB + 5) < VOCAB
    mask[[3, 7]] = False
    fit = fit_probe(embedding, -log_alpha(embedding, hidden), mask=mask)  # the softmax is over all rows
    assert float(values["probability.heldout_r2"]) == pytest.approx(float(fit.heldout_r2), abs=1e-5)
    masked = measured(ProbabilityProbe(mask=mask), embedding, hidden)
    assert float(masked["probability.heldout_mse"]) == pytest.approx(float(fit.heldout_mse), abs=1e-5)
    for settings, message in (({"min_count": 2}, "there are no counts"), ({"max_positions": 0}, "max_positions is 0")):
        with pytest.raises(ValueError, match=message):
            ProbabilityProbe(**settings)
    with pytest.raises(ValueError, match="no token is left"):
        ProbabilityProbe(COUNTS, min_count=10**9)


def test_channels_and_the_frequency_slope():
    embedding, hidden = draw(VOCAB, DIM), draw(6, 9, DIM, seed=1)
    beta, bias = draw(DIM, seed=3), draw(VOCAB, seed=4)
    values = measured(ProbabilityProbe(COUNTS), embedding, hidden, norm_bias=beta, bias=bias)
    y, mu = frequency_target(COUNTS), hidden.double().mean((0, 1))
    for name, channel in (
        ("norm_bias", embedding.double() @ beta.double()),
        ("mean_hidden", embedding.double() @ mu),
        ("rest", embedding.double() @ (mu - beta)),
        ("head_bias", bias),
    ):
        expected = scipy.stats.spearmanr(channel.numpy(), -y.numpy())[0]
        assert float(values[f"channel.{name}"]) == pytest.approx(expected, abs=1e-9), name
    found = channels(embedding, y, head_bias=bias)
    for name in ("embedding_r2", "head_bias_r2", "joint_r2"):
        assert float(values[f"channel.{name}"]) == pytest.approx(float(getattr(found, name)), abs=1e-6)
    slopes = [fit_probe(embedding, target).slope for target in (-log_alpha(embedding, hidden, bias), y)]
    expected = float(slope_cosine(*slopes))
    assert float(values["probability.frequency_slope_cosine"]) == pytest.approx(expected, abs=1e-5)
    bare = measured(ProbabilityProbe(COUNTS), embedding, hidden)
    assert {name for name in bare if name.startswith("channel.")} == {"channel.mean_hidden", "channel.embedding_r2"}


def test_untrained_figures_repeat_and_slopes_are_transferred():
    metric, hidden = ProbabilityProbe(COUNTS), draw(6, 9, DIM, seed=1)
    first, later = 0.02 * draw(VOCAB, DIM), draw(VOCAB, DIM, seed=2)
    start = measured(metric, first, hidden)
    assert float(start["probability.untrained_r2"]) == float(start["probability.heldout_r2"]) > 0.9
    assert float(start["probability.untrained_variance"]) < 0.05
    assert "probability.transfer_r2" not in start
    resumed = ProbabilityProbe(COUNTS)
    resumed.load_state_dict(metric.state_dict())
    after = measured(metric, later, hidden, step=4)
    y = -log_alpha(later, hidden)
    expected = float(transfer_r2(fit_probe(first, -log_alpha(first, hidden)), later, y))
    assert float(after["probability.transfer_r2"]) == pytest.approx(expected, abs=1e-3)
    for name in ("untrained_r2", "untrained_variance"):
        assert float(after[f"probability.{name}"]) == float(start[f"probability.{name}"])
    assert (after["probability.step"], after["probability.untrained_step"]) == (4, 0)
    again, other = metric.compute(state_of(later, step=5)), measured(resumed, later, hidden, step=4)
    for name, value in after.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(again[name])), name
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(other[name])), name


def test_only_the_passes_of_one_update_count():
    metric, embedding, hidden = ProbabilityProbe(), draw(VOCAB, DIM), draw(6, 9, DIM, seed=1)
    assert metric.compute(state_of(embedding)) == {}
    metric.observe(draw(6, 9, DIM, seed=5), step=0)
    for part in (hidden[:2], hidden[2:]):
        metric.observe(part, step=1)
    assert metric.compute(state_of(embedding, step=3)) == {}
    values, whole = metric.compute(state_of(embedding, step=2)), measured(ProbabilityProbe(), embedding, hidden, step=1)
    for name in FIGURES:
        assert float(values[f"probability.{name}"]) == float(whole[f"probability.{name}"])
    assert values["probability.sequences"] == 6


def test_a_constant_added_to_all_rows_changes_nothing():
    embedding, hidden = draw(VOCAB, DIM), draw(6, 9, DIM, seed=1)
    plain, moved = (measured(ProbabilityProbe(), e, hidden) for e in (embedding, embedding + draw(DIM, seed=4)))
    for name in FIGURES:
        assert float(plain[f"probability.{name}"]) == pytest.approx(float(moved[f"probability.{name}"]), abs=1e-4)


def test_degenerate_models_have_stated_answers():
    hidden = draw(6, 9, DIM, seed=1)
    uniform = measured(ProbabilityProbe(COUNTS), torch.zeros(VOCAB, DIM), hidden)
    for name in ("heldout_r2", "heldout_spearman", "r2", "r2_mean_hidden", "split_half_reliability"):
        assert torch.as_tensor(uniform[f"probability.{name}"]).isnan(), name
    assert float(uniform["probability.variance"]) == pytest.approx(0, abs=1e-12)
    two = measured(ProbabilityProbe(), draw(2, DIM), hidden)
    assert float(two["probability.r2"]) == pytest.approx(1)
    assert torch.as_tensor(two["probability.heldout_spearman"]).isnan()
    wide = measured(ProbabilityProbe(), draw(DIM, DIM), hidden)
    assert float(wide["probability.r2"]) == pytest.approx(1, abs=1e-6)
    one = measured(ProbabilityProbe(), draw(VOCAB, DIM), hidden[0, :1])
    assert float(one["probability.heldout_r2"]) == pytest.approx(1, abs=1e-5)
    assert one["probability.split_half_reliability"].isnan()


def test_what_is_not_finite_is_counted_and_stops_nothing():
    embedding, hidden = draw(VOCAB, DIM), draw(6, 9, DIM, seed=1)
    broken = hidden.clone()
    broken[2] = torch.nan
    values = measured(ProbabilityProbe(), embedding, broken)
    clean = fit_probe(embedding, -log_alpha(embedding, hidden[[0, 1, 3, 4, 5]]))
    assert float(values["probability.heldout_r2"]) == pytest.approx(float(clean.heldout_r2), abs=1e-5)
    assert (float(values["probability.positions"]), float(values["probability.excluded_positions"])) == (45, 9)
    ruled_out = torch.zeros(VOCAB)
    ruled_out[4] = -torch.inf
    assert float(measured(ProbabilityProbe(), embedding, hidden, bias=ruled_out)["probability.excluded_rows"]) == 1
    embedding[5, 0] = torch.nan
    metric = ProbabilityProbe(COUNTS)
    none = measured(metric, embedding, hidden)
    assert "probability.heldout_r2" not in none
    assert (float(none["probability.positions"]), float(none["probability.excluded_rows"])) == (0, VOCAB)
    assert np.isnan(none["probability.untrained_r2"])


@pytest.mark.parametrize("watched", [False, True])
def test_a_loop_feeds_it_through_the_hook(watched):
    losses, values, randomness = run_loop(watched=watched)
    plain = run_loop(watched=False)
    assert losses == plain[0]
    assert torch.equal(randomness, plain[2])
    assert [v.get("probability.step") for v in values] == ([0.0, 1.0, 2.0] if watched else [])


class Dropped(Tiny):
    def forward(self, ids):
        return self.head(self.norm(nn.functional.dropout(self.block(self.embedding(ids)), 0.2)))


def run_loop(*, watched):
    """Three updates of two micro-batches each, with the calls a recorder makes."""
    model, metric, values, step = Dropped(VOCAB, DIM), ProbabilityProbe(COUNTS, max_positions=50), [], 0
    assert find_output_embedding(model).module is model.head
    if watched:
        watch_head_input(model.head, lambda hidden: metric.observe(hidden, step=step))
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.1), []
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for _ in range(3):
            for _ in range(2):
                ids = torch.randint(VOCAB, (4, 9))
                loss = cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
                loss.backward()
                losses.append(loss.item())
            if watched:
                values.append(metric.compute(replace(make_state(model=model, norm=True), step=step + 1)))
                assert values[-1]["probability.sequences"] == 8
                assert "channel.rest" in values[-1]
            optimizer.step()
            optimizer.zero_grad()
            step += 1
        return losses, values, torch.get_rng_state()
