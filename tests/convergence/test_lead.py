import numpy as np
import pytest
from planted import planted_run, straight_line

from trainhooks.convergence import ArrayTrajectory, random_walk
from trainhooks.convergence.decomposition import Decomposition, centred_change
from trainhooks.convergence.labellings import (
    matched_labellings,
    resampling_weights,
    singular_basis,
    unit_labelling,
)
from trainhooks.convergence.lead import (
    MATCHED,
    PERMUTATIONS,
    SIGN_FLIPS,
    Onsets,
    bin_counts,
    change_over_noise,
    direction,
    draw_labellings,
    lead_at,
    leading_left_vector,
    p_value,
    percentiles,
    summary,
)
from trainhooks.convergence.onset import onset
from trainhooks.convergence.references import decompose, straight_line_leads, walk_references
from trainhooks.convergence.trajectory import StraightLine


def analysed(run, y, *, draws=99, seed=0, resamples=0):
    first, last = run[0], run[len(run) - 1]
    change = centred_change(last, first=first)
    drawn = draw_labellings(unit_labelling(y), change=change, basis=singular_basis(change), draws=draws, seed=seed)
    weights = resampling_weights(len(y), draws=resamples, rng=np.random.default_rng(seed)) if resamples else None
    sums = Decomposition(first, last, labellings=drawn.labellings, weights=weights)
    for index in range(len(run)):
        sums.add(run[index])
    return drawn, sums


def lead_of(run, y, *, q=0.5, above_noise=True, **settings):
    drawn, sums = analysed(run, y, **settings)
    progress = sums.progress()
    onsets = Onsets(run.steps, progress.part, progress.rest)
    resampled = Onsets(run.steps, *sums.resampled_progress()) if settings.get("resamples") else None
    return lead_at(q, onsets=onsets, draws=drawn, resampled=resampled, above_noise=above_noise)


@pytest.mark.parametrize("q", [0.05, 0.3, 0.5, 0.9, 0.99])
def test_a_straight_line_leads_by_one_at_every_share(q):
    run = straight_line()
    lead = lead_of(run, np.random.default_rng(1).standard_normal(120), q=q, draws=19)
    assert lead.lead == pytest.approx(1.0, rel=1e-5)
    assert lead.same_bracket


@pytest.mark.parametrize(("frequency_middle", "rest_middle"), [(20, 40), (10, 30), (30, 20)])
def test_a_planted_lead_is_found(frequency_middle, rest_middle):
    run, y = planted_run(frequency_middle=frequency_middle, rest_middle=rest_middle)
    lead = lead_of(run, y, resamples=50)
    early, late = np.array([frequency_middle, rest_middle]) * 1.0
    assert lead.lead == pytest.approx(late / early, rel=0.05)
    assert lead.interval.low < lead.lead < lead.interval.high
    assert lead.frequency_interval.low < lead.frequency.step < lead.frequency_interval.high
    if frequency_middle < rest_middle:
        assert lead.nulls[MATCHED].p == pytest.approx(0.01)
        assert lead.nulls[MATCHED].high < lead.lead
    else:
        assert lead.nulls[MATCHED].p == 1.0


def test_lead_is_the_ratio_of_the_two_onsets():
    run, y = planted_run(frequency_middle=20, rest_middle=40)
    _, sums = analysed(run, y, draws=19)
    progress = sums.progress()
    lead = lead_of(run, y, draws=19)
    frequency, rest = onset(run.steps, progress.part[0], q=0.5), onset(run.steps, progress.rest[0], q=0.5)
    assert lead.lead == pytest.approx(rest.step / frequency.step, rel=1e-9)
    assert (lead.frequency.low, lead.rest.high) == (frequency.low, rest.high)


@pytest.mark.parametrize("change", ["scale", "rotation", "shift", "unit of y"])
def test_lead_is_invariant_to(change):
    run, y = planted_run(frequency_middle=20, rest_middle=40)
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((16, 16)))[0].astype(np.float32)
    other = {
        "scale": 100.0 * run.matrices,
        "rotation": run.matrices @ turn,
        "shift": run.matrices + turn[0],
        "unit of y": run.matrices,
    }[change]
    before = lead_of(run, y, draws=19)
    after = lead_of(ArrayTrajectory(other, steps=run.steps), 5.0 - 2.0 * y if change == "unit of y" else y, draws=19)
    assert after.lead == pytest.approx(before.lead, rel=1e-4)
    assert after.nulls[MATCHED].p == before.nulls[MATCHED].p


def matched_p(run, y, *, seed):
    """The lead's p against 39 matched labellings alone, at q = 0.5."""
    first, last = run[0], run[len(run) - 1]
    change, labelling = centred_change(last, first=first), unit_labelling(y)
    leading = leading_left_vector(change, basis=singular_basis(change))
    drawn = matched_labellings(labelling, leading=leading, draws=39, rng=np.random.default_rng(seed))
    onsets, _ = decompose(run, labellings=np.column_stack([labelling, drawn]))
    steps = onsets.pairs(q=0.5)
    leads = steps[:, 1] / steps[:, 0]
    return p_value(float(leads[0]), leads[1:])


def test_a_random_walk_shows_a_lead_no_more_often_than_chance():
    hits = 0
    for seed in range(100):
        walk = random_walk(np.arange(0, 50, 2), rows=60, dims=8, seed=seed)
        hits += matched_p(walk, np.random.default_rng([seed, 9]).standard_normal(60), seed=seed) < 0.05
    assert hits <= 10


def test_permuted_targets_show_a_lead_no_more_often_than_chance():
    run, y = planted_run(frequency_middle=20, rest_middle=40, rows=60, dims=8, last=30)
    hits = 0
    for seed in range(100):
        hits += matched_p(run, np.random.default_rng([seed, 9]).permutation(y), seed=seed) < 0.05
    assert hits <= 10


def test_a_straight_line_does_not_beat_its_twins_by_rounding():
    for seed in range(5):
        run = straight_line(seed=seed)
        y = run[40][:, 0] - run[0][:, 0]
        assert lead_of(run, y.astype(np.float64), draws=39, seed=seed).nulls[MATCHED].p > 0.05


def test_the_same_seed_draws_the_same_and_another_does_not():
    run, y = planted_run(frequency_middle=20, rest_middle=40, rows=60, dims=8, last=30)
    assert lead_of(run, y, draws=19, resamples=5) == lead_of(run, y, draws=19, resamples=5)
    assert lead_of(run, y, draws=19).nulls != lead_of(run, y, draws=19, seed=1).nulls


def test_a_change_within_noise_has_no_onset_and_no_lead():
    run, y = planted_run(frequency_middle=20, rest_middle=40, rows=60, dims=8, last=30)
    lead = lead_of(run, y, draws=19, above_noise=False, resamples=5)
    assert lead.frequency.status == "none"
    assert np.isnan([lead.lead, lead.interval.low, lead.nulls[MATCHED].p]).all()
    assert not lead.same_bracket


def test_draws_are_grouped_and_start_with_the_targets():
    run, y = planted_run(frequency_middle=20, rest_middle=40)
    drawn, _ = analysed(run, y, draws=21)
    np.testing.assert_allclose(drawn.labellings[:, 0], unit_labelling(y), atol=1e-6)
    spans = [drawn.groups[name] for name in (MATCHED, SIGN_FLIPS, PERMUTATIONS)] + list(drawn.bins.values())
    assert [span.stop - span.start for span in spans] == [21, 21, 21, 19, 19, 19]
    assert [span.start for span in spans] == [1, *(span.stop for span in spans[:-1])]
    assert list(drawn.bins) == bin_counts(400) == [4, 16, 64]
    assert bin_counts(15) == []


def test_within_bins_coarse_targets_survive():
    run, y = planted_run(frequency_middle=20, rest_middle=40)
    order = np.argsort(y)
    ordered = ArrayTrajectory(run.matrices[:, order], steps=run.steps)
    curve = lead_of(ordered, y[order], draws=19).coarse_to_fine
    assert [point.bins for point in curve] == [4, 16, 64]
    assert curve[-1].median == pytest.approx(2.0, rel=0.05)
    assert all(point.low <= point.median <= point.high for point in curve)


def test_change_over_noise_tells_targets_from_permuted_ones():
    run, y = planted_run(frequency_middle=20, rest_middle=40)
    drawn, sums = analysed(run, y)
    assert change_over_noise(sums.progress().size, null=drawn.groups[PERMUTATIONS]) > 10.0
    drawn, sums = analysed(run, np.random.default_rng(4).permutation(y))
    assert change_over_noise(sums.progress().size, null=drawn.groups[PERMUTATIONS]) < 3.0


def test_p_counts_ties_and_undefined_draws_against_the_claim():
    null = np.array([1.0, 2.0, 3.0, np.nan])
    assert p_value(2.5, null) == 3 / 5
    assert p_value(2.0, null) == p_value(2.0 * (1 + 1e-8), null) == 4 / 5
    assert p_value(9.0, null[:3]) == 1 / 4
    assert p_value(1.5, null, smaller=True) == 3 / 5
    assert np.isnan(p_value(np.nan, null))
    got = summary(2.5, null)
    assert (got.draws, got.undefined, got.median) == (4, 1, 2.0)
    assert np.isnan(percentiles(np.full(3, np.nan), (5.0, 95.0))).all()


def test_direction_settles_early_where_the_part_turns_once():
    run, y = planted_run(frequency_middle=20, rest_middle=40)
    drawn, sums = analysed(run, y)
    got = direction(run.steps, progress=sums.progress(), draws=drawn)
    cosine = sums.progress().cosine[0]
    assert got.step == run.steps[np.flatnonzero(cosine <= 0.9)[-1] + 1]
    assert set(got.nulls) == {MATCHED, SIGN_FLIPS, PERMUTATIONS}
    assert 0.0 < got.nulls[PERMUTATIONS].p < 1.0
    assert got.nulls[PERMUTATIONS].median > got.step


def test_references_have_their_known_answers():
    walk = walk_references(np.arange(301), q=(0.5, 0.9), seed=0)
    assert walk[0.5].distance.step == pytest.approx(0.75 * 300, rel=0.03)
    assert walk[0.9].distance.step == pytest.approx(0.99 * 300, rel=0.01)
    assert walk[0.5].low < 1.0 < walk[0.5].high
    assert walk[0.5].median == pytest.approx(1.0, abs=0.1)
    rng = np.random.default_rng(0)
    first, last = rng.standard_normal((2, 50, 4)).astype(np.float32)
    line = StraightLine(first, last, steps=np.arange(6), progress=np.array([0.0, 0.1, 0.4, 0.5, 0.95, 1.0]))
    leads = straight_line_leads(line, labelling=unit_labelling(rng.standard_normal(50)), q=(0.2, 0.5, 0.9))
    assert list(leads.values()) == pytest.approx([1.0, 1.0, 1.0], rel=1e-5)
