import numpy as np
import pytest
from synthetic_runs import broad_run, planted_run, straight_line

from trainhooks.lead import ArrayTrajectory, random_walk
from trainhooks.lead.decomposition import centred_change
from trainhooks.lead.draws import BLOCKS, NULLS, PERMUTATIONS, SIGN_FLIPS, SPACE, Columns, bin_counts, twins_of
from trainhooks.lead.labellings import permuted_labellings, singular_basis, unit_labelling
from trainhooks.lead.lead import CutRun, Onsets, change_over_noise, direction, lead_at, p_value, percentiles, summary
from trainhooks.lead.lead_sums import LeadAccumulator, cut_index, gathered
from trainhooks.lead.onset import onset
from trainhooks.lead.reference_runs import decompose, straight_line_leads, walk_references


def reading_of(run, y, *, draws=99, seed=0, resamples=0):
    cut = cut_index(run.steps)
    reader = LeadAccumulator(
        run[0], run[len(run) - 1], run[cut], targets=y, draws=draws, seed=seed, resamples=resamples
    )
    records = [reader.measure(run[index], within_cut=index <= cut) for index in range(len(run))]
    return gathered(run.steps, records, columns=reader.columns, dims=reader.dims, correlation=reader.correlation)


def lead_of(run, y, *, q=0.5, above_noise=True, **settings):
    reading = reading_of(run, y, **settings)
    progress, cut = reading.products.progress(), reading.cut_products.progress()
    resampled = Onsets(run.steps, *reading.products.resampled_progress()) if settings.get("resamples") else None
    return lead_at(
        q,
        onsets=Onsets(run.steps, progress.part, progress.rest),
        columns=reading.columns,
        resampled=resampled,
        cut=CutRun(float(reading.cut_step), Onsets(run.steps[: cut.part.shape[1]], cut.part, cut.rest)),
        above_noise=above_noise,
    )


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


@pytest.mark.parametrize(("frequency_middle", "rest_middle"), [(20, 40), (10, 30), (30, 20)])
def test_a_lead_of_targets_spread_over_the_change_beats_every_null(frequency_middle, rest_middle):
    run, y = broad_run(frequency_middle=frequency_middle, rest_middle=rest_middle)
    lead = lead_of(run, y, resamples=50)
    assert lead.lead == pytest.approx(rest_middle / frequency_middle, rel=0.05)
    if frequency_middle < rest_middle:
        assert [lead.nulls[name].p for name in NULLS] == [0.01, 0.01, 0.01]
        assert lead.p == 0.01
        assert lead.excess.value == pytest.approx(lead.lead / lead.nulls[lead.excess.null].median)
        assert 1.0 < lead.excess.interval.low < lead.excess.value < lead.excess.interval.high
        assert lead.rank.p <= 0.05
        assert lead.cut.p <= 0.05
        assert lead.cut_step == 75
    else:
        assert lead.p == 1.0
        assert lead.excess.interval.high < 1.0


def test_the_largest_p_over_the_nulls_counts_and_permutations_do_not():
    lead = lead_of(*broad_run(frequency_middle=40, rest_middle=40))
    assert lead.p == max(lead.nulls[name].p for name in (SIGN_FLIPS, BLOCKS, SPACE))
    assert PERMUTATIONS in lead.nulls
    assert lead.p > 0.05


def test_on_two_directions_alone_the_twins_have_the_lead_too_and_the_excess_is_small():
    run, y = planted_run(frequency_middle=20, rest_middle=40)
    lead = lead_of(run, y)
    assert lead.lead == pytest.approx(2.0, rel=0.05)
    assert lead.excess.null == SIGN_FLIPS
    assert lead.excess.value == pytest.approx(1.0, abs=0.01)
    assert lead.excess.interval.low == pytest.approx(1.0, abs=0.01)


def test_lead_is_the_ratio_of_the_two_onsets():
    run, y = planted_run(frequency_middle=20, rest_middle=40)
    progress = reading_of(run, y, draws=19).products.progress()
    lead = lead_of(run, y, draws=19)
    frequency, rest = onset(run.steps, progress.part[0], q=0.5), onset(run.steps, progress.rest[0], q=0.5)
    assert lead.lead == pytest.approx(rest.step / frequency.step, rel=1e-9)
    assert (lead.frequency.low, lead.rest.high) == (frequency.low, rest.high)


@pytest.mark.parametrize("change", ["scale", "rotation", "shift", "unit of y"])
def test_lead_is_invariant_to(change):
    run, y = broad_run(dims=16)
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
    assert after.p == before.p


def pass_count(run, labellings, *, null_seed):
    """How many of these labellings have a p of 0.05 or less against every null made of them, at q = 0.5."""
    change = centred_change(run[len(run) - 1], first=run[0])
    basis, hits = singular_basis(change), 0
    for index, labelling in enumerate(labellings.T):
        rng = np.random.default_rng([null_seed, index])
        twins = twins_of(unit_labelling(labelling), change=change, basis=basis, draws=39, rng=rng)
        progress = decompose(run, labellings=twins).progress()
        leads = Onsets(run.steps, progress.part, progress.rest).leads(q=0.5)
        hits += max(p_value(leads[0], leads[1 + 39 * k : 40 + 39 * k]) for k in range(len(NULLS))) <= 0.05
    return hits


@pytest.mark.parametrize("family", [SIGN_FLIPS, BLOCKS, SPACE, PERMUTATIONS])
def test_labellings_without_meaning_pass_no_more_often_than_chance(family):
    run, y = broad_run(rows=60, dims=8, last=24, frequency_middle=8, rest_middle=16)
    change, rng = centred_change(run[24], first=run[0]), np.random.default_rng(3)
    labelling = unit_labelling(y)
    if family == PERMUTATIONS:
        drawn = permuted_labellings(labelling, draws=99, rng=rng)
    else:
        twins = twins_of(labelling, change=change, basis=singular_basis(change), draws=99, rng=rng)
        drawn = twins[:, 1 + 99 * NULLS.index(family) :][:, :99]
    assert pass_count(run, drawn, null_seed=5) <= 10


def test_a_random_walk_shows_a_lead_no_more_often_than_chance():
    hits = 0
    for seed in range(60):
        walk = random_walk(np.arange(0, 50, 2), rows=60, dims=8, seed=seed)
        hits += pass_count(walk, np.random.default_rng([seed, 9]).standard_normal((60, 1)), null_seed=seed)
    assert hits <= 6


def test_a_straight_line_does_not_beat_its_twins_by_rounding():
    for seed in range(5):
        run = straight_line(seed=seed)
        y = run[40][:, 0] - run[0][:, 0]
        lead = lead_of(run, y.astype(np.float64), draws=39, seed=seed)
        assert lead.p == 1.0


def test_the_same_seed_draws_the_same_and_another_does_not():
    run, y = planted_run(frequency_middle=20, rest_middle=40, rows=60, dims=8, last=30)
    assert lead_of(run, y, draws=19, resamples=5) == lead_of(run, y, draws=19, resamples=5)
    assert lead_of(run, y, draws=19).nulls != lead_of(run, y, draws=19, seed=1).nulls


def test_a_change_within_noise_has_no_onset_and_no_lead():
    run, y = planted_run(frequency_middle=20, rest_middle=40, rows=60, dims=8, last=30)
    lead = lead_of(run, y, draws=19, above_noise=False, resamples=5)
    assert lead.frequency.status == "none"
    assert np.isnan([lead.lead, lead.interval.low, lead.p, lead.excess.value, lead.excess.interval.low]).all()
    assert not lead.same_bracket


def test_columns_lie_side_by_side_and_hold_what_they_say():
    run, y = planted_run(frequency_middle=20, rest_middle=40)
    columns = Columns.of(400, draws=21)
    spans = [*columns.targets.groups.values(), columns.permutations, *columns.bins.values()]
    spans += columns.ranks.groups.values()
    assert [span.stop - span.start for span in spans] == [21, 21, 21, 21, 19, 19, 19, 21, 21, 21]
    assert [span.start for span in spans] == [1, *(s.stop + (s.stop == columns.ranks.column) for s in spans[:-1])]
    assert list(columns.bins) == bin_counts(400) == [4, 16, 64]
    assert list(columns.groups) == [*NULLS, PERMUTATIONS]
    assert bin_counts(15) == []
    assert reading_of(run, y, draws=21).products.inner.shape == (101, columns.ranks.stop)


def test_ranks_take_the_place_of_the_targets_in_their_check():
    run, y = broad_run(rows=120)
    stretched = np.exp((y - y.mean()) / y.std() * 2.0)
    assert lead_of(run, stretched, draws=19).rank.lead == pytest.approx(lead_of(run, y, draws=19).rank.lead)
    assert lead_of(run, stretched, draws=19).lead != pytest.approx(lead_of(run, y, draws=19).lead)


def test_the_cut_run_is_the_run_that_ends_there():
    run, y = broad_run(rows=120)
    cut = ArrayTrajectory(run.matrices[:76], steps=run.steps[:76])
    assert lead_of(run, y, draws=19).cut.lead == pytest.approx(lead_of(cut, y, draws=19).lead, rel=1e-4)
    assert cut_index(np.array([0, 30, 80, 100])) is None
    assert cut_index(np.array([100, 130, 175, 180, 200])) == 2


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
    for targets, above in ((y, True), (np.random.default_rng(4).permutation(y), False)):
        reading = reading_of(run, targets)
        found = change_over_noise(reading.products.progress().size, null=reading.columns.permutations)
        assert (found > 10.0) if above else (found < 3.0)


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
    reading = reading_of(run, y)
    got = direction(run.steps, progress=reading.products.progress(), columns=reading.columns)
    cosine = reading.products.progress().cosine[0]
    assert got.step == run.steps[np.flatnonzero(cosine <= 0.9)[-1] + 1]
    assert set(got.nulls) == {*NULLS, PERMUTATIONS}
    assert 0.0 < got.nulls[PERMUTATIONS].p < 1.0
    assert got.nulls[PERMUTATIONS].median > got.step


def test_references_have_their_known_answers():
    walk = walk_references(np.arange(301), q=(0.5, 0.9), seed=0)
    assert walk[0.5].distance.step == pytest.approx(0.75 * 300, rel=0.03)
    assert walk[0.9].distance.step == pytest.approx(0.99 * 300, rel=0.01)
    assert walk[0.5].low < 1.0 < walk[0.5].high
    assert walk[0.5].median == pytest.approx(1.0, abs=0.1)
    products = reading_of(*broad_run(rows=60), draws=19).products
    leads = straight_line_leads(products, steps=np.arange(101), q=(0.2, 0.5, 0.9))
    assert list(leads.values()) == pytest.approx([1.0, 1.0, 1.0], rel=1e-9)
