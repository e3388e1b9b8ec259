import numpy as np
import pytest
import torch
from naive_probe import heldout_r2, planted, refit

from trainhooks.probe import (
    covariate_gain,
    fit_probe,
    never_label_control,
    norm_folded,
    row_norm_probe,
    row_norms,
    token_covariates,
)
from trainhooks.probe.baselines import beside, fit_row_norms
from trainhooks.probe.fit import as_columns, build_rows
from trainhooks.probe.rows import sum_rows
from trainhooks.probe.scored import score
from trainhooks.probe.solve import solve_sums


def test_row_norms_are_about_the_mean_of_the_mask():
    embedding, _, _ = planted(50, 4)
    mask = torch.arange(50) < 30
    expected = np.linalg.norm(embedding.numpy() - embedding[mask].numpy().mean(0), axis=1)
    np.testing.assert_allclose(row_norms(embedding, mask=mask), expected, rtol=1e-12)


def test_row_norm_probe_is_a_regression_on_one_feature():
    embedding, _, _ = planted(400, 4)
    y = torch.linalg.vector_norm(embedding - embedding.mean(0), dim=1) * 2 + 1
    assert float(row_norm_probe(embedding, y).heldout_r2) == pytest.approx(1)
    assert float(row_norm_probe(embedding, y).slope[0]) == pytest.approx(2)
    assert float(row_norm_probe(embedding + 5, -y).heldout_spearman) == pytest.approx(1)


def test_norm_folded_head_has_the_same_fit_and_other_norms():
    embedding, y, _ = planted()
    gamma = torch.linspace(0.1, 4, 12, dtype=torch.float64)
    folded = norm_folded(embedding, gamma)
    plain, fit = fit_probe(embedding, y), fit_probe(folded, y)
    assert float(fit.heldout_r2) == pytest.approx(float(plain.heldout_r2), abs=1e-10)
    np.testing.assert_allclose(fit.slope * gamma, plain.slope, rtol=1e-8)
    assert not torch.allclose(row_norms(folded), row_norms(embedding), rtol=0.1)


def test_token_covariates():
    found = token_covariates(["a", " the", "\u0120the", "\u2581", "é", ""])
    assert found.tolist() == [[0, 1, 0], [1, 4, 1], [2, 4, 1], [3, 1, 1], [4, 2, 0], [5, 0, 0]]
    assert token_covariates([]).shape == (0, 3)


def test_covariate_gain_is_what_the_embedding_adds():
    embedding, y, _ = planted(noise=1.0)
    covariates = token_covariates(["x" * (i % 7) for i in range(600)])
    y = y + covariates[:, 1]
    gain = covariate_gain(embedding, covariates, y)
    joint = torch.cat([embedding, covariates / torch.tensor([600, 7, 1])], 1)
    assert float(gain.covariates.heldout_r2) == pytest.approx(heldout_r2(y, *refit(covariates[:, :2], y)), abs=1e-8)
    assert float(gain.joint.heldout_r2) == pytest.approx(heldout_r2(y, *refit(joint[:, :-1], y)), abs=1e-8)
    assert float(gain.r2_gain) == pytest.approx(float(gain.joint.heldout_r2 - gain.covariates.heldout_r2))
    assert float(gain.spearman_gain) > 0.3


def test_an_embedding_of_noise_gains_nothing():
    generator = torch.Generator().manual_seed(0)
    covariates = token_covariates(["x"] * 2000)
    y = covariates[:, 0] * 0.01 + torch.randn(2000, dtype=torch.float64, generator=generator)
    gain = covariate_gain(torch.randn(2000, 30, generator=generator), covariates, y)
    assert abs(float(gain.r2_gain)) < 0.02
    assert abs(float(gain.spearman_gain)) < 0.02


def test_extra_columns_take_the_embedding_s_spread():
    embedding, _, _ = planted(100, 4)
    columns = torch.stack([torch.arange(100.0) * 1e6, torch.full((100,), 3.0)], 1)
    wide = beside(embedding, columns)
    assert wide.shape == (100, 6)
    assert torch.equal(wide[:, :4], embedding)
    assert float(wide[:, 4].std(correction=0)) == pytest.approx(float(embedding.std(0, correction=0).mean()))
    assert wide[:, 5].std() == 0


def test_never_label_rows_against_explicit_pairs():
    embedding, y, _ = planted(60, 5)
    never = torch.arange(60) >= 40
    fit = fit_probe(embedding, y, mask=~never)
    mean = embedding[~never].mean(0)
    control = never_label_control(embedding, never, slope=fit.slope, intercept=fit.intercept, mean_row=mean)
    rows = (embedding[never] - mean).numpy()
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    pairs = [units[i] @ units[j] for i in range(20) for j in range(i)]
    assert float(control.cosine) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert float(control.prediction) == pytest.approx(float(fit.predict(embedding[never]).mean()))


def test_never_label_rows_that_moved_together_have_cosine_one():
    embedding = torch.zeros(10, 3)
    embedding[4:] = torch.tensor([1.0, 2.0, 3.0]) * torch.arange(1, 7)[:, None]
    control = never_label_control(
        embedding,
        torch.arange(10) >= 4,
        slope=torch.zeros(3, dtype=torch.float64),
        intercept=torch.tensor(4.0, dtype=torch.float64),
        mean_row=torch.zeros(3, dtype=torch.float64),
    )
    assert float(control.cosine) == pytest.approx(1)
    assert float(control.prediction) == 4


@pytest.mark.parametrize(("rows", "cosine", "prediction"), [(0, True, True), (1, True, False)])
def test_too_few_never_label_rows_give_nan(rows, cosine, prediction):
    embedding, _, slope = planted(10, 5)
    embedding[9, 0] = torch.nan  # left out
    never = (torch.arange(10) >= 9 - rows) if rows else torch.zeros(10, dtype=torch.bool)
    control = never_label_control(
        embedding,
        never,
        slope=slope,
        intercept=torch.tensor(0.0, dtype=torch.float64),
        mean_row=torch.zeros(5, dtype=torch.float64),
    )
    assert bool(control.cosine.isnan()) == cosine
    assert bool(control.prediction.isnan()) == prediction


def test_row_norm_probe_names_the_bad_row_and_not_all():
    embedding, y, _ = planted(60, 4)
    embedding[7, 2] = torch.nan
    with pytest.raises(ValueError, match=r"1 rows .* ids \[7\] first"):
        row_norm_probe(embedding, y)
    mask = torch.arange(60) != 7
    assert row_norm_probe(embedding, y, mask=mask).heldout_r2.isfinite()


def test_extra_columns_keep_their_digits_beside_bfloat16_and_find_a_tiny_spread():
    embedding, _, _ = planted(4000, 4)
    ids = torch.arange(4000.0)[:, None]
    assert len(beside(embedding.bfloat16(), ids)[:, -1].unique()) == 4000
    tiny = beside((embedding * 1e-30).float(), ids)
    spread = torch.linalg.vector_norm(tiny - tiny.mean(0), dim=0, dtype=torch.float64)
    assert float(spread[-1]) == pytest.approx(float(spread[:-1].mean()), rel=1e-4)
    with pytest.raises(ValueError, match="columns have 3 rows"):
        beside(embedding, ids[:3])


@pytest.mark.parametrize("case", ["plain", "a bad row", "equal norms", "constant target", "few rows"])
def test_the_norms_of_a_second_pass_give_the_row_norm_probe(case):
    generator = torch.Generator().manual_seed(3)
    vocab = 4 if case == "few rows" else 203
    embedding = torch.randn(vocab, 6, generator=generator, dtype=torch.float64) + 2
    y = embedding.square().sum(1) + torch.randn(vocab, generator=generator, dtype=torch.float64)
    mask = torch.ones(vocab, dtype=torch.bool)
    if case == "a bad row":
        embedding[7, 2] = torch.nan
        mask[7] = False
    elif case == "equal norms":
        embedding = torch.cat([torch.eye(6), -torch.eye(6)]).double().repeat(17, 1)[:204]
        y = torch.randn(204, generator=generator, dtype=torch.float64)
        mask = torch.ones(204, dtype=torch.bool)
    elif case == "constant target":
        y = torch.full((vocab,), 3.7, dtype=torch.float64)
    twin = row_norm_probe(embedding, y, mask=mask)
    rows = build_rows(embedding, as_columns(y), mask=None, weights=None, folds=5)
    first = sum_rows(embedding, rows, dtype=torch.float64)
    scored = score(embedding, rows, first=first, found=solve_sums(first.sums, exact=True))
    fit = fit_row_norms(scored, rows)
    torch.testing.assert_close(fit.heldout_r2, twin.heldout_r2, equal_nan=True, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(fit.heldout_spearman, twin.heldout_spearman, equal_nan=True, rtol=1e-9, atol=1e-9)
