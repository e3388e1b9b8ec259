import pytest
import scipy.stats
import torch
from naive_probe import planted

from trainhooks.probe import channels, fit_probe


def test_rank_correlations_agree_with_scipy():
    embedding, y, _ = planted(noise=3.0)
    generator = torch.Generator().manual_seed(1)
    beta, mu = torch.randn(2, 12, dtype=torch.float64, generator=generator)
    bias = -y + torch.randn(600, dtype=torch.float64, generator=generator)
    mask = torch.arange(600) % 3 > 0
    found = channels(embedding, y, mask=mask, norm_bias=beta, mean_hidden=mu, head_bias=bias)
    down = -y[mask].numpy()
    for ours, channel in (
        (found.norm_bias, embedding @ beta),
        (found.mean_hidden, embedding @ mu),
        (found.rest, embedding @ (mu - beta)),
        (found.head_bias, bias),
    ):
        assert float(ours) == pytest.approx(scipy.stats.spearmanr(channel[mask].numpy(), down)[0], abs=1e-12)


def test_only_the_head_bias_lies_outside_the_probe():
    embedding, y, slope = planted(noise=3.0)
    extra = torch.randn(600, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 5
    inside = channels(embedding, y, head_bias=embedding @ slope)
    assert float(inside.joint_r2) == pytest.approx(float(inside.embedding_r2), abs=1e-9)
    outside = channels(embedding, y + extra, head_bias=-extra)
    assert float(outside.joint_r2) > float(outside.embedding_r2) + 0.3
    assert float(outside.head_bias_r2) == pytest.approx(
        float(fit_probe(extra[:, None], y + extra).heldout_r2), abs=1e-9
    )


def test_what_a_model_lacks_is_none_and_a_zero_bias_is_nan():
    embedding, y, _ = planted()
    found = channels(embedding, y)
    assert (found.norm_bias, found.mean_hidden, found.rest, found.head_bias) == (None, None, None, None)
    assert (found.head_bias_r2, found.joint_r2) == (None, None)
    assert float(found.embedding_r2) == pytest.approx(float(fit_probe(embedding, y).heldout_r2))
    zero = channels(embedding, y, norm_bias=torch.zeros(12), head_bias=torch.zeros(600))
    assert zero.norm_bias.isnan()
    assert zero.head_bias.isnan()
    assert float(zero.joint_r2) == pytest.approx(float(found.embedding_r2), abs=1e-9)


def test_parts_of_another_model_and_broken_biases_are_refused():
    embedding, y, _ = planted(60, 4)
    with pytest.raises(ValueError, match=r"norm_bias has shape \(3,\)"):
        channels(embedding, y, norm_bias=torch.ones(3))
    with pytest.raises(ValueError, match=r"head_bias has shape \(4,\)"):
        channels(embedding, y, head_bias=torch.ones(4))
    with pytest.raises(ValueError, match="60 rows"):
        channels(embedding, y, head_bias=torch.full((60,), torch.nan))
