from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import trainhooks.metrics.covariate_baseline as module
from trainhooks.metrics.base import State
from trainhooks.metrics.covariate_baseline import CovariateBaseline
from trainhooks.metrics.frequency_probe import FrequencyProbe
from trainhooks.model import OutputEmbedding
from trainhooks.probe import covariate_gain, frequency_target, token_covariates, token_mask

VOCAB, DIM = 600, 12
RNG = np.random.default_rng(0)
COUNTS = RNG.permutation((1e6 / np.arange(1, VOCAB + 1)).astype(np.int64))
TEXTS = [
    " " * int(space) + "x" * int(size)
    for space, size in zip(RNG.integers(0, 2, VOCAB), RNG.integers(1, 9, VOCAB), strict=True)
]
FIGURES = {
    "heldout_r2": lambda gain: gain.covariates.heldout_r2,
    "heldout_spearman": lambda gain: gain.covariates.heldout_spearman,
    "joint_r2": lambda gain: gain.joint.heldout_r2,
    "joint_spearman": lambda gain: gain.joint.heldout_spearman,
    "r2_gain": lambda gain: gain.r2_gain,
    "spearman_gain": lambda gain: gain.spearman_gain,
}


def state(embedding, step=0):
    head = OutputEmbedding(embedding, "lm_head.weight", nn.Linear(1, 1))
    return State(step=step, model=nn.Linear(1, 1), head=head, groups={})


def embedding_of(*, vocab=VOCAB, dim=DIM, noise=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.zeros(vocab)
    y[:VOCAB] = frequency_target(COUNTS)[:vocab].float()
    rows = torch.randn(vocab, dim, generator=generator) * noise
    return rows + (y - y.mean())[:, None] * torch.randn(dim, generator=generator) / dim + 3.0


def twin(embedding, *, counts=COUNTS, texts=TEXTS, **rows):
    """The offline figures in float64, from a copy of E with the covariates beside it."""
    mask = token_mask(counts, **rows)
    return covariate_gain(embedding.double(), token_covariates(texts), frequency_target(counts, mask=mask), mask=mask)


@pytest.mark.parametrize(("dtype", "digits"), [(torch.float64, 1e-9), (torch.float32, 1e-5), (torch.bfloat16, 1e-5)])
@pytest.mark.parametrize("rows", [{}, {"min_count": 2600, "exclude": [3, 9]}])
def test_figures_are_those_of_covariate_gain(dtype, digits, rows):
    embedding = embedding_of().to(dtype)
    values = CovariateBaseline(COUNTS, TEXTS, **rows).compute(state(embedding))
    expected = twin(embedding, **rows)
    assert set(values) == {f"covariates.{name}" for name in FIGURES}
    for name, figure in FIGURES.items():
        tolerance = 10 * digits if "spearman" in name and dtype != torch.float64 else digits
        assert float(values[f"covariates.{name}"]) == pytest.approx(float(figure(expected)), abs=tolerance), name


def test_a_probes_sums_are_taken_and_give_the_same(monkeypatch):
    shown, alone = state(embedding_of()), CovariateBaseline(COUNTS, TEXTS).compute(state(embedding_of()))
    FrequencyProbe(COUNTS).compute(shown)
    monkeypatch.setattr(module, "sum_rows", lambda *_, **__: pytest.fail("summed again"))
    shared = CovariateBaseline(COUNTS, TEXTS).compute(shown)
    for name, value in alone.items():
        assert float(shared[name]) == pytest.approx(float(value), abs=1e-9), name


def test_sums_of_other_counts_or_rows_are_not_taken():
    other = np.random.default_rng(5).permutation(COUNTS)
    for probe in (FrequencyProbe(other), FrequencyProbe(COUNTS, exclude=[1])):
        shown = state(embedding_of())
        probe.compute(shown)
        values = CovariateBaseline(COUNTS, TEXTS).compute(shown)
        assert float(values["covariates.joint_r2"]) == pytest.approx(
            float(twin(embedding_of()).joint.heldout_r2), abs=1e-5
        )


def test_what_the_covariates_say_is_no_gain():
    """Counts that fall with the id, and an embedding of noise: covariates know, E does not."""
    counts = (1e7 * np.exp(-np.arange(VOCAB) / 100)).astype(np.int64) + 1
    noise = torch.randn(VOCAB, DIM, generator=torch.Generator().manual_seed(1))
    values = CovariateBaseline(counts, TEXTS).compute(state(noise))
    assert float(values["covariates.heldout_r2"]) == pytest.approx(1, abs=1e-6)
    assert float(values["covariates.r2_gain"]) == pytest.approx(0, abs=1e-6)
    assert float(CovariateBaseline(COUNTS, TEXTS).compute(state(embedding_of(noise=0.05)))["covariates.r2_gain"]) > 0.8


def test_scale_shift_and_rotation_of_the_embedding_change_nothing():
    embedding = embedding_of().double()
    rotation = torch.linalg.qr(embedding_of(seed=3)[:DIM].double())[0]
    base = CovariateBaseline(COUNTS, TEXTS).compute(state(embedding))
    moved = CovariateBaseline(COUNTS, TEXTS).compute(state(1e-3 * embedding @ rotation - 4))
    for name, value in base.items():
        assert float(moved[name]) == pytest.approx(float(value), abs=1e-8), name


def test_rows_that_are_not_finite_are_left_out_of_both_fits():
    broken = embedding_of()
    broken[7, 3], broken[100] = torch.nan, torch.inf
    mask = torch.ones(VOCAB, dtype=torch.bool)
    mask[[7, 100]] = False
    values = CovariateBaseline(COUNTS, TEXTS).compute(state(broken))
    expected = twin(embedding_of(), mask=mask)
    # the same rows, though N of the target counts all: a constant for every row
    for name, figure in FIGURES.items():
        assert float(values[f"covariates.{name}"]) == pytest.approx(float(figure(expected)), abs=1e-4), name


def test_degenerate_answers():
    zero = CovariateBaseline(COUNTS, TEXTS).compute(state(torch.zeros(VOCAB, DIM)))
    assert float(zero["covariates.r2_gain"]) == pytest.approx(0, abs=1e-9)
    assert zero["covariates.heldout_r2"].isfinite()
    bare = CovariateBaseline(COUNTS, ["ab"] * VOCAB).compute(state(embedding_of()))  # two constant covariates
    expected = twin(embedding_of(), texts=["ab"] * VOCAB)
    assert float(bare["covariates.joint_r2"]) == pytest.approx(float(expected.joint.heldout_r2), abs=1e-5)
    assert float(bare["covariates.heldout_r2"]) == pytest.approx(float(expected.covariates.heldout_r2), abs=1e-9)
    equal = CovariateBaseline(np.full(VOCAB, 5), TEXTS).compute(state(embedding_of()))
    assert all(value.isnan() for value in equal.values())
    lost = CovariateBaseline(COUNTS, TEXTS).compute(state(torch.full((VOCAB, DIM), torch.nan)))
    assert all(value.isnan() for value in lost.values())


@pytest.mark.parametrize("vocab", [2, 13, 16])
def test_few_rows(vocab):
    values = CovariateBaseline(COUNTS[:vocab], TEXTS[:vocab]).compute(state(embedding_of()[:vocab]))
    expected = twin(embedding_of()[:vocab], counts=COUNTS[:vocab], texts=TEXTS[:vocab])
    if vocab > 5:
        assert float(values["covariates.joint_r2"]) == pytest.approx(float(expected.joint.heldout_r2), rel=1e-5)
    assert set(values) == {f"covariates.{name}" for name in FIGURES}


def test_padding_rows_stay_out():
    padded = torch.cat([embedding_of(), torch.full((8, DIM), 50.0)])
    values = CovariateBaseline(COUNTS, TEXTS, vocab_size=VOCAB).compute(state(padded))
    alone = CovariateBaseline(COUNTS, TEXTS).compute(state(embedding_of()))
    assert all(torch.equal(values[name], alone[name]) for name in alone)
    with pytest.raises(ValueError, match=r"600 entries.*608 rows.*vocab_size=600"):
        CovariateBaseline(COUNTS, TEXTS).compute(state(padded))


def test_kept_bytes_are_what_is_kept():
    shown = state(embedding_of())
    assert CovariateBaseline(COUNTS, TEXTS).kept_bytes(shown) == {"device": 40 * VOCAB, "host": 24 * VOCAB}
    part = CovariateBaseline(COUNTS, TEXTS, exclude=[0]).kept_bytes(shown)
    assert part == {"device": 48 * (VOCAB - 1), "host": 24 * VOCAB}


def test_asking_again_gives_the_same_and_changes_nothing():
    weight = nn.Parameter(embedding_of())
    metric, shown = CovariateBaseline(COUNTS, TEXTS), state(weight)
    before, rng = weight.detach().clone(), torch.get_rng_state()
    first = metric.compute(shown)
    again = metric.compute(replace(shown, step=4, shared={}))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert torch.equal(weight.detach(), before)
    assert torch.equal(torch.get_rng_state(), rng)


def test_bad_settings():
    with pytest.raises(ValueError, match=r"599 token texts and 600 counts"):
        CovariateBaseline(COUNTS, TEXTS[:-1])
    with pytest.raises(ValueError, match="in a list"):
        CovariateBaseline(COUNTS, "x" * VOCAB)
    with pytest.raises(ValueError, match="no token is left"):
        CovariateBaseline(COUNTS, TEXTS, min_count=10**9)
