import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from synthetic_lm import llama, neox, planted, target, texts

from trainhooks.core.token_counts import TokenCounts
from trainhooks.intervene.bootstrap import document_draws, log_ratio_draws
from trainhooks.intervene.contexts import collect_contexts
from trainhooks.intervene.outputs import outputs, token_log_p
from trainhooks.intervene.slope import probability_slope
from trainhooks.intervene.steering.directions import SOLVED, least_spread, make_directions
from trainhooks.intervene.steering.edits import SteeringData, has_constant_gauge, steer
from trainhooks.intervene.steering.effects import effects
from trainhooks.intervene.steering.few_samples import few_sample_curve
from trainhooks.intervene.steering.real_pass import apply_edit, mean_probability
from trainhooks.intervene.steering.report import run_steering, token_frequency
from trainhooks.intervene.steering.scales import find_joint_scales, find_scales, joint_log_p


@pytest.fixture(scope="module")
def real():
    one = target(llama())
    docs = texts(24)
    return one, *(collect_contexts(one, part, context_length=30, max_positions=600) for part in (docs[:12], docs[12:]))


def drawn(seed=0, positions=400):
    generator = torch.Generator().manual_seed(seed)
    p = 0.02 + 0.3 * torch.rand(positions, generator=generator, dtype=torch.float64)
    return p.log(), 1 + 0.3 * torch.randn(positions, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("ratio", [0.05, 0.5, 2.0, 4.0])
def test_scale_is_the_naive_root(ratio):
    log_p, shift = drawn()
    p = log_p.exp()

    def error(c):
        up = torch.exp(c * shift)
        return float((p * up / (1 - p + p * up)).mean() - ratio * p.mean())

    slow = brentq(error, 0, 20) if ratio > 1 else brentq(error, -20, 0)
    assert float(find_scales(log_p, shift, torch.tensor([ratio]).double())) == pytest.approx(slow, rel=1e-6)


def test_the_root_nearest_to_zero_is_taken():
    log_p = torch.full((1000,), 0.01).double().log()
    shift = torch.linspace(-1, 1.2, 1000).double()  # both signs of c raise the mean
    found = float(find_scales(log_p, shift, torch.tensor([3.0]).double()))
    assert found > 0
    assert float(find_scales(log_p, -shift, torch.tensor([3.0]).double())) == pytest.approx(-found)
    assert math.isnan(float(find_scales(log_p, shift, torch.tensor([0.2]).double())))  # no c lowers it so far


def test_infeasible_and_wrong_ratios():
    log_p, shift = drawn()
    top = 1 / float(log_p.exp().mean())
    found = find_scales(log_p, shift, torch.tensor([1.0, top * 1.01]).double())
    assert found[0] == 0
    assert found[1].isnan()
    assert find_scales(log_p, 0 * shift, torch.tensor([2.0]).double()).isnan().all()
    for bad in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="above 0"):
            find_scales(log_p, shift, torch.tensor([bad]).double())


def test_several_tokens_share_a_normaliser():
    logits = torch.randn(5, 300, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    log_p = logits.log_softmax(0)[:3]
    shift = 1 + 0.1 * torch.randn(3, 300, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ratios = torch.tensor([1.5, 0.5, 1.2]).double()
    scales = find_joint_scales(log_p, shift, ratios)
    moved = torch.cat([logits[:3] + scales[:, None] * shift, logits[3:]]).softmax(0)[:3]
    assert torch.allclose(moved.mean(1) / log_p.exp().mean(1), ratios, rtol=1e-8)
    assert torch.allclose(moved.log(), joint_log_p(log_p, scales[:, None] * shift))
    assert find_joint_scales(log_p, shift, torch.tensor([2.0, 2.0, 2.0]).double()).isnan().all()


def test_effects_are_those_of_the_whole_distribution(real):
    one, contexts, _ = real
    before = outputs(one.weight, None, contexts)
    log_p = token_log_p(one.weight, None, contexts, before, [3])[0]
    moved = 0.7 * contexts.hidden[:, 0].double()[None]
    found = effects(3, moved, log_p=log_p, contexts=contexts, before=before)
    logits = contexts.hidden.double() @ one.weight.double().T
    old = logits.log_softmax(1)
    logits[:, 3] += moved[0]
    new = logits.log_softmax(1)
    middle = ((old.exp() + new.exp()) / 2).log()
    js = (old.exp() * (old - middle) + new.exp() * (new - middle)) / 2
    loss = torch.nn.functional.nll_loss
    assert float(found.ratio) == pytest.approx(float(new[:, 3].exp().mean() / old[:, 3].exp().mean()), rel=1e-4)
    assert float(found.spread) == pytest.approx(float((new - old)[:, 3].std(correction=0)), rel=1e-4)
    assert float(found.js) == pytest.approx(float(js.sum(1).mean()), rel=1e-3)
    assert float(found.js_rest) == pytest.approx(float(js.sum(1).mean() - js[:, 3].mean()), rel=1e-3)
    assert float(found.agreement) == pytest.approx(float((new.argmax(1) == old.argmax(1)).double().mean()))
    change = float(loss(new, contexts.labels) - loss(old, contexts.labels))
    assert float(found.loss_change) == pytest.approx(change, abs=1e-5)


def test_intervals_resample_documents():
    counts = document_draws(6, draws=50, seed=0)
    assert (counts.sum(1) == 6).all()
    old = torch.arange(1.0, 7).double()
    assert torch.allclose(log_ratio_draws(3 * old[None], old, counts), torch.tensor(3.0).double().log())


def test_directions_follow_the_encoding():
    weight = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    slope = torch.randn(8, generator=torch.Generator().manual_seed(1)).double()
    alpha = torch.exp(-(weight.double() @ slope) - 4)
    assert torch.allclose(probability_slope(weight, alpha, vocab_size=60), slope, atol=1e-4)
    contexts = planted(dim=8)
    made = make_directions(SOLVED, slope=slope, weight=weight, hidden=contexts.hidden)
    assert [d.name for d in made] == list(SOLVED)
    for direction in made[:3]:
        assert float(direction.vector @ slope) == pytest.approx(-1)
    assert made[2].vector.norm() <= min(d.vector.norm() for d in made[:3])
    spreads = [float(d.shift(contexts.hidden).std() / d.shift(contexts.hidden).mean().abs()) for d in made[:4]]
    assert min(spreads) == spreads[3]
    with pytest.raises(ValueError, match="no direction"):
        make_directions(["up"], slope=slope, weight=weight, hidden=contexts.hidden)


def test_least_spread_of_no_mean_is_zero():
    assert not least_spread(torch.cat([torch.eye(3), -torch.eye(3)])).any()


def test_a_planted_code_is_steered_to_one_percent():
    weight = torch.randn(40, 16, generator=torch.Generator().manual_seed(3))
    one = dataclasses.replace(target(llama()), weight=weight)
    found = steer(one, planted(), planted(seed=1), tokens=[1, 5], ratios=[0.1, 0.5, 2.0, 5.0], directions=SOLVED[1:])
    ok = [edit for edit in found.edits if edit.feasible]
    assert len(ok) >= 28
    for edit in ok:
        assert edit.calibration == pytest.approx(edit.requested, rel=1e-3)
        assert edit.achieved == pytest.approx(edit.requested, rel=1e-2)


def test_a_rare_token_follows_the_papers_scale():
    """P' is P r where P is small: the encoding then gives the ratio without a search."""
    weight = torch.randn(40, 16, generator=torch.Generator().manual_seed(3))
    one = dataclasses.replace(target(llama()), weight=weight)
    rarest = int((weight @ torch.ones(16)).argmin())
    found = steer(one, planted(), planted(seed=1), tokens=[rarest], ratios=[0.2, 2.0, 5.0], directions=["least_norm"])
    for edit in found.edits:
        assert edit.predicted == pytest.approx(edit.requested, rel=0.1)


def test_what_is_reported_is_the_edited_models_own_forward_pass(real):
    one, first, second = real
    found = steer(one, first, second, tokens=["w3"], ratios=[3.0])
    assert {edit.direction for edit in found.edits} == {*SOLVED, "random_norm", "random_shift"}
    bench = SteeringData.build(one, first, second)
    made = make_directions(SOLVED, slope=bench.slope, weight=one.weight, hidden=first.hidden)
    for edit, direction in zip(found.edits, made, strict=False):
        edited = apply_edit(one, direction, tokens=[3], scales=[edit.scale])
        again = collect_contexts(edited, texts(24)[12:], context_length=30, max_positions=600)
        ratio = mean_probability(edited, again, [3]) / mean_probability(one, second, [3])
        assert float(ratio) == pytest.approx(edit.achieved, rel=1e-3)
        assert edit.calibration == pytest.approx(3, rel=1e-3)
        assert edit.low <= edit.achieved <= edit.high
    bias = found.edits[4]
    assert bias.beside_bias == (0, 0)
    assert bias.size == 0
    assert found == steer(one, first, second, tokens=["w3"], ratios=[3.0])


def test_only_a_layer_norm_with_bias_has_a_constant_gauge(real):
    one, first, _ = real
    assert not has_constant_gauge(one, first)
    two = target(neox())
    assert has_constant_gauge(two, collect_contexts(two, texts(6), context_length=30))


def test_few_samples(real):
    one, first, second = real
    bench = SteeringData.build(one, first, second)
    curve = few_sample_curve(bench, tokens=[3], ratios=[2.0], vocab_size=40, sizes=(1, 8), draws=20)
    assert [point.documents for point in curve] == [1, 8]
    assert curve[0].cosine.median() < curve[1].cosine.median() <= 1


def test_counts_decide_the_bins_and_one_document_is_refused(real):
    one, first, second = real
    counts = torch.arange(40).double()
    found = steer(one, first, second, tokens=1, ratios=[2.0], directions=["logit_bias"], counts=counts)
    assert [edit.token for edit in found.edits] == [39]
    single = dataclasses.replace(second, document=torch.zeros_like(second.document))
    with pytest.raises(ValueError, match="test 1; needed 2"):
        steer(one, first, single, tokens=1, ratios=[2.0])


def test_from_files_to_a_saved_model(tmp_path):
    one = target(llama(tied=True))
    one.save(tmp_path / "model")
    (tmp_path / "text.txt").write_text("\n\n".join(texts(20)))
    saved = tmp_path / "edited"
    report = run_steering(
        tmp_path / "model",
        text=[tmp_path / "text.txt"],
        tokens=["w3"],
        ratios=[2.0],
        directions=["least_norm"],
        context_length=30,
        untie=True,
        save=saved,
    )
    [check] = report.real
    assert check.untied == pytest.approx(check.closed_form, rel=1e-3)
    assert check.tied is not None
    assert "least_norm" in report.render()
    assert report.to_dict()["steering"]["edits"][0]["requested"] == 2
    assert (saved / "model.safetensors").is_file()
    with pytest.raises(ValueError, match="one direction"):
        run_steering(tmp_path / "model", text=[tmp_path / "text.txt"], save=saved)


def test_counts_come_from_a_file(tmp_path):
    one = target(llama())
    TokenCounts(np.arange(40)).save(tmp_path / "counts.npz")
    assert token_frequency(tmp_path / "counts.npz", one).tolist() == list(range(40))
    TokenCounts(np.arange(39)).save(tmp_path / "fewer.npz")
    with pytest.raises(ValueError, match="39"):
        token_frequency(tmp_path / "fewer.npz", one)
