import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from trainhooks.core.token_counts import TokenCounts
from trainhooks.metrics.base import State
from trainhooks.metrics.frequency_probe import FrequencyProbe
from trainhooks.model import OutputEmbedding
from trainhooks.numerics.host import pack
from trainhooks.probe import fit_probe, frequency_target, permutation, row_norm_probe, token_mask

DATA = Path(os.environ.get("TRAINHOOKS_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


def state(embedding, step=0):
    head = OutputEmbedding(embedding, "lm_head.weight", nn.Linear(1, 1))
    return State(step=step, model=nn.Linear(1, 1), head=head, groups={})


def zipf(vocab=400, *, unseen=0):
    counts = (1e6 / np.arange(1, vocab + 1)).astype(np.int64)
    counts[vocab - unseen :] = 0
    return np.random.default_rng(0).permutation(counts)


def embedding_of(counts, dim=16, *, noise=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = -torch.from_numpy(np.log(np.maximum(counts, 0.5)))
    rows = torch.randn(len(counts), dim, generator=generator) * noise
    return rows + (y - y.mean()).float()[:, None] * torch.randn(dim, generator=generator) / dim


def test_live_figures_are_those_of_fit_probe():
    counts = zipf(unseen=30)
    embedding = embedding_of(counts)
    values = FrequencyProbe(counts, min_count=2600).compute(state(embedding))
    mask = token_mask(counts, min_count=2600)
    y = frequency_target(counts, mask=mask)
    fit, norm = fit_probe(embedding, y, mask=mask), row_norm_probe(embedding, y, mask=mask)
    for name in ("heldout_spearman", "heldout_pearson", "heldout_r2", "heldout_mse", "r2", "adjusted_r2", "rank"):
        assert float(values[f"probe.{name}"]) == pytest.approx(float(getattr(fit, name)), abs=1e-5), name
    assert torch.allclose(values["probe.slope"], fit.slope, atol=1e-5)
    assert float(values["probe.intercept"]) == pytest.approx(float(fit.intercept), abs=1e-5)
    np.testing.assert_allclose(values["probe.fold_slope"], fit.fold_slope, atol=1e-5)
    np.testing.assert_allclose(values["probe.fold_intercept"], fit.fold_intercept, atol=1e-5)
    assert values["probe.fold_slope"].dtype == values["probe.fold_intercept"].dtype == torch.float32
    assert float(values["probe.row_norm_r2"]) == pytest.approx(float(norm.heldout_r2), abs=1e-5)
    assert float(values["probe.row_norm_spearman"]) == pytest.approx(float(norm.heldout_spearman), abs=1e-5)
    ids = mask.nonzero().flatten()
    y[ids] = y[ids[permutation(ids)]]
    permuted = fit_probe(embedding, y, mask=mask)
    assert float(values["probe.permuted_heldout_r2"]) == pytest.approx(float(permuted.heldout_r2), abs=1e-5)
    assert float(values["probe.permuted_heldout_spearman"]) == pytest.approx(float(permuted.heldout_spearman), abs=1e-3)


def test_every_variable_has_a_value_of_its_shape():
    for counts in (zipf(), zipf(unseen=3)):
        metric = FrequencyProbe(TokenCounts(counts))
        values = metric.compute(state(embedding_of(counts)))
        assert set(values) == {variable.name for variable in metric.variables}
        for variable in metric.variables:
            sizes = {"dim": 16, "fold": 5}
            assert values[variable.name].shape == tuple(sizes[dim] for dim in variable.dims)
            assert variable.description


def test_held_out_error_follows_from_the_stored_folds():
    counts = zipf()
    embedding = embedding_of(counts)
    values = FrequencyProbe(counts).compute(state(embedding))
    slopes, intercepts = values["probe.fold_slope"].double(), values["probe.fold_intercept"].double()
    fold = torch.arange(len(counts)) % 5
    predicted = (embedding.double() * slopes[fold]).sum(1) + intercepts[fold]
    error = (predicted - frequency_target(counts)).square().mean()
    assert float(values["probe.heldout_mse"]) == pytest.approx(float(error), rel=1e-5)


def test_frequency_is_found_and_the_null_is_empty():
    counts = zipf(2000)
    values = FrequencyProbe(counts).compute(state(embedding_of(counts, noise=0.05)))
    assert float(values["probe.heldout_spearman"]) > 0.9
    assert float(values["probe.permuted_heldout_r2"]) < 0.01
    assert abs(float(values["probe.permuted_heldout_spearman"])) < 0.1
    random = FrequencyProbe(counts).compute(state(torch.randn(2000, 16, generator=torch.Generator().manual_seed(1))))
    assert float(random["probe.heldout_r2"]) <= 0.01


def test_rows_that_are_not_finite_are_left_out_and_counted():
    counts = zipf()
    embedding = embedding_of(counts)
    broken = embedding.clone()
    broken[7, 3], broken[100], broken[301, 0] = torch.nan, torch.inf, 1e30
    mask = torch.ones(400, dtype=torch.bool)
    mask[[7, 100, 301]] = False
    values = FrequencyProbe(counts).compute(state(broken))
    expected = FrequencyProbe(counts, mask=mask).compute(state(embedding))
    assert float(values["probe.excluded_rows"]) == 3
    assert float(expected["probe.excluded_rows"]) == 0
    for name, value in expected.items():
        if "permuted" not in name and name not in ("probe.excluded_rows", "probe.drift"):
            np.testing.assert_allclose(values[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_matrix_of_nan_stops_nothing():
    counts = zipf()
    values = FrequencyProbe(counts).compute(state(torch.full((400, 16), torch.nan)))
    assert float(values["probe.excluded_rows"]) == 400
    assert values["probe.heldout_r2"].isnan()
    assert values["probe.r2"].isnan()


def test_a_zero_head_knows_nothing():
    counts = zipf(unseen=5)
    values = FrequencyProbe(counts).compute(state(torch.zeros(400, 16)))
    assert float(values["probe.r2"]) == pytest.approx(0, abs=1e-12)
    assert float(values["probe.heldout_r2"]) == pytest.approx(0, abs=1e-12)
    assert float(values["probe.rank"]) == 0
    assert values["probe.heldout_spearman"].isnan()
    assert values["probe.never_label_cosine"].isnan()


def test_drift_looks_back_one_record_and_repeats_itself():
    counts = zipf()
    metric = FrequencyProbe(counts)
    first, second = embedding_of(counts, seed=1), embedding_of(counts, seed=2)
    a = metric.compute(state(first, step=0))
    assert a["probe.drift"].isnan()
    b = metric.compute(state(second, step=4))
    expected = torch.cosine_similarity(a["probe.slope"], b["probe.slope"], dim=0)
    assert float(b["probe.drift"]) == pytest.approx(float(expected), abs=1e-12)
    again = metric.compute(state(second, step=4))
    for name, value in b.items():
        assert torch.equal(torch.as_tensor(again[name]), torch.as_tensor(value)), name
    assert metric.compute(state(first, step=0))["probe.drift"].isnan()


def test_padding_rows_stay_out_and_are_the_control():
    counts = zipf()
    embedding = embedding_of(counts)
    padding = torch.full((12, 16), 3.0)
    padded = torch.cat([embedding, padding])
    with pytest.raises(ValueError, match=r"400 entries.*412 rows.*vocab_size=400"):
        FrequencyProbe(counts).compute(state(padded))
    values = FrequencyProbe(counts, vocab_size=400).compute(state(padded))
    alone = FrequencyProbe(counts).compute(state(embedding))
    for name, value in alone.items():
        if name != "probe.drift":
            assert torch.equal(torch.as_tensor(values[name]), torch.as_tensor(value)), name
    assert float(values["probe.never_label_cosine"]) == pytest.approx(1)
    predicted = padding[0].double() @ values["probe.slope"] + values["probe.intercept"]
    assert float(values["probe.never_label_prediction"]) == pytest.approx(float(predicted))


def test_counts_must_leave_a_token():
    with pytest.raises(ValueError, match="no token is left"):
        FrequencyProbe(zipf(), min_count=10**9)


def test_vocabulary_narrower_than_the_embedding():
    counts = zipf(97)
    values = FrequencyProbe(counts).compute(state(embedding_of(counts, dim=128)))
    assert float(values["probe.rank"]) == 96
    assert float(values["probe.r2"]) == pytest.approx(1)
    assert values["probe.adjusted_r2"].isnan()
    assert float(values["probe.heldout_r2"]) <= 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_any_floating_type(dtype):
    counts = zipf()
    embedding = embedding_of(counts).to(dtype)
    values = FrequencyProbe(counts).compute(state(embedding))
    expected = FrequencyProbe(counts).compute(state(embedding.double()))
    for name in ("probe.heldout_r2", "probe.r2", "probe.intercept", "probe.row_norm_r2"):
        assert float(values[name]) == pytest.approx(float(expected[name]), abs=1e-4), name


def test_attaching_changes_no_weight_gradient_or_random_number():
    counts = zipf()
    weight = nn.Parameter(embedding_of(counts))
    before, shown = weight.detach().clone(), state(weight)
    rng = torch.get_rng_state()
    values = FrequencyProbe(counts).compute(shown)
    assert torch.equal(weight.detach(), before)
    assert weight.grad is None
    assert torch.equal(rng, torch.get_rng_state())
    assert not any(value.requires_grad for value in values.values() if isinstance(value, torch.Tensor))


@pytest.mark.parametrize(("smallest", "digits"), [(1e-1, 1e-5), (1e-2, 1e-4)])
def test_float32_sums_carry_an_ill_conditioned_head(smallest, digits):
    """Singular values down to `smallest` of the largest, and a target that needs all of them."""
    counts = zipf(3000)
    generator = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(64, 64, dtype=torch.float64, generator=generator))[0]
    scores = torch.randn(3000, 64, dtype=torch.float64, generator=generator)
    scores[:, -1] += frequency_target(counts)  # the frequency stands in the weakest direction
    embedding = ((scores * torch.logspace(0, np.log10(smallest), 64)) @ basis + 0.5).float()
    values = FrequencyProbe(counts).compute(state(embedding))
    exact = fit_probe(embedding.double(), frequency_target(counts))
    assert float(exact.heldout_r2) > 0.3
    for name in ("r2", "heldout_r2", "heldout_spearman"):
        assert float(values[f"probe.{name}"]) == pytest.approx(float(getattr(exact, name)), abs=digits), name
    assert float(torch.dist(values["probe.slope"], exact.slope) / exact.slope.norm()) < digits
    assert float(values["probe.rank"]) == 64
    assert smallest**2 < float(values["probe.pivot"]) < 1


class NoWaits(TorchDispatchMode):
    """Refuses operations whose result the host must know: values, sizes that depend on values, decompositions."""

    REFUSED = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_linalg_eigh", "_linalg_svd", "equal")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert not name.startswith(self.REFUSED), f"{name} waits for the device"
        if name == "index":
            assert all(i is None or i.dtype == torch.int64 for i in args[1]), "a boolean index waits for the device"
        return func(*args, **(kwargs or {}))


def test_nothing_on_the_live_path_waits_for_the_device():
    counts = zipf(unseen=9)
    metric, shown = FrequencyProbe(counts), state(embedding_of(counts))
    metric.compute(shown)  # builds what depends on counts alone
    with NoWaits():
        metric.compute(shown)
    with NoWaits(), pytest.raises(AssertionError, match="waits for the device"):
        float(shown.head.weight.sum())


def test_noise_ceiling_is_near_one_for_a_large_corpus():
    assert 0.99 < FrequencyProbe(zipf()).noise_ceiling < 1


def test_a_real_series_learns_frequency():
    folder = DATA / "series" / "charrnn-sherlock"
    if not folder.exists():
        pytest.skip(f"no {folder}: set TRAINHOOKS_DATA to a data folder")
    letters = json.loads((folder / "step0" / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    found = Counter((folder / "corpus.txt").read_text(encoding="utf-8"))
    metric = FrequencyProbe(np.array([found[letter] for letter in sorted(letters, key=letters.get)]))
    heads = [load_file(folder / f"step{step}" / "model.safetensors")["embed_out.weight"] for step in (0, 1000, 2000)]
    values = [metric.compute(state(head, step=step)) for step, head in enumerate(heads)]
    start, middle, end = (float(v["probe.heldout_spearman"]) for v in values)
    assert abs(start) < 0.35
    assert min(middle, end) > 0.85
    assert [float(v["probe.rank"]) for v in values] == [96, 96, 96]  # 97 rows in 128 dimensions
    norms = [float(v["probe.row_norm_spearman"]) for v in values]
    assert norms[0] < 0.2
    assert norms[2] > 0.8
    assert max(float(v["probe.permuted_heldout_r2"]) for v in values) < 0


@pytest.mark.parametrize("case", ["plain", "unseen tokens", "a bad row", "of zeros", "narrow"])
def test_parts_that_travel_give_the_figures_of_the_device(case):
    counts = zipf(90 if case == "narrow" else 400, unseen=30 if case == "unseen tokens" else 0)
    head = embedding_of(counts, dim=100 if case == "narrow" else 16) * (case != "of zeros")
    if case == "a bad row":
        head[[5, 17], 3] = torch.nan
    here, there = FrequencyProbe(counts), FrequencyProbe(counts)
    for step in range(2):
        now = state(head * (1 + 0.1 * step), step=step)
        expected, parts = here.compute(now), pack(there.parts(now))
        declared = sum(np.asarray(value).size for value in expected.values())
        assert 8 * len(parts.flat) <= 8 * declared + there.sent_bytes(head.to("meta"))
        found = there.conclude(parts.unpack(parts.flat) | {"other": np.ones(3)})
        assert set(found) == set(expected) | {"other"}
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], np.asarray(value), rtol=1e-12, atol=1e-12, err_msg=name)
