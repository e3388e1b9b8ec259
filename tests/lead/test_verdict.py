import json
from dataclasses import replace

import numpy as np
import pytest

from trainhooks.core.formatting import plain
from trainhooks.lead import ArrayTrajectory, Series, analyze_run
from trainhooks.lead.draws import BLOCKS, NULLS, SIGN_FLIPS
from trainhooks.lead.onset import NO_ONSET
from trainhooks.lead.verdict import verdict

STEPS = np.arange(41)


def run_of(seed, *, frequency_power=0.5, rest_power=1.0):
    """A run of 16 directions over which the targets are spread, their part moving on its own clock; analysed."""
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(np.column_stack([np.ones(120), rng.standard_normal((120, 16))]))[0][:, 1:]
    y = left @ np.r_[0.6, 0.8 * np.ones(15) / np.sqrt(15.0)]
    final = left * (10.0 / np.sqrt(1.0 + np.arange(16))) @ np.linalg.qr(rng.standard_normal((16, 16)))[0]
    part, clock = np.outer(y, final.T @ y), (STEPS / 40.0)[:, None, None]
    moved = clock**frequency_power * part + clock**rest_power * (final - part)
    rates = Series(STEPS, np.interp(STEPS, [0, 10, 40], [0.0, 1.0, 0.1]))
    run = ArrayTrajectory(moved.astype(np.float32), steps=STEPS)
    return analyze_run(run, y, draws=99, seed=seed, resamples=20, learning_rate=rates, series={"probe.spearman": rates})


@pytest.fixture(scope="module")
def runs():
    return [run_of(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def straight():
    return run_of(7, frequency_power=1.0)


def altered(run, **changes):
    return replace(run, leads=(replace(run.leads[0], **changes), *run.leads[1:]))


def with_p(run, p):
    return altered(run, p=p)


def test_one_run_claims_no_more_than_one_run(runs):
    got = verdict(runs[:1])
    lead = runs[0].leads[0]
    assert lead.lead == pytest.approx(2.0, rel=0.05)
    assert (got.outcome, got.level, got.about_model, got.seeds) == ("lead", "suggested by one run", False, 1)
    excess = lead.excess
    assert got.sentence == (
        f"Suggested by one run: frequency came before the rest (lead {lead.lead:.4g} at q = 0.5; "
        f"excess {excess.value:.3g}, 95% {excess.interval.low:.3g}-{excess.interval.high:.3g}, over {excess.null}; "
        "largest p = 0.01 over 3 nulls of 99 draws; one run)."
    )
    assert any("needs three" in note for note in got.notes)


def test_three_runs_speak_of_the_model(runs):
    got = verdict(runs)
    leads = [run.leads[0].lead for run in runs]
    assert (got.outcome, got.level, got.about_model, got.seeds) == ("lead", "shown (3 seeds)", True, 3)
    assert got.sentence.startswith("Shown (3 seeds): frequency came before the rest (excess lead ")
    assert got.sentence.endswith("at q = 0.5; combined p = 0.02).")
    assert got.shares[0].lead.mean == pytest.approx(np.mean(leads))
    assert (got.shares[0].lead.low, got.shares[0].lead.high) == (min(leads), max(leads))
    assert got.shares[0].p == (0.01, 0.01, 0.01)
    low, high = got.shares[0].over_seeds.excess[1:]
    assert 1.0 < low < got.shares[0].excess.mean < high
    assert not any("needs three" in note for note in got.notes)


def test_two_runs_are_too_few_for_the_model(runs):
    got = verdict(runs[:2])
    assert (got.outcome, got.level, got.about_model) == ("lead", "suggested by 2 runs", False)
    assert got.sentence.startswith("Suggested by 2 runs: frequency came before the rest (")


def test_a_straight_line_has_no_lead(straight):
    got = verdict([straight])
    assert (got.outcome, got.level) == ("no lead", "not shown")
    assert got.sentence.startswith(
        "Not shown: both onsets lie between the same two records (steps 19 and 20) (lead 1 at q = 0.5; "
    )


def test_seeds_with_and_without_a_lead_show_none(runs, straight):
    got = verdict([*runs[:2], straight])
    assert (got.outcome, got.level) == ("no lead", "not shown")
    assert got.sentence.startswith("Not shown: the lead's interval over seeds contains 1, or lies below it (excess ")


def test_a_late_part_is_no_lead_however_small_its_p(runs):
    got = verdict([altered(runs[0], lead=0.9)])
    assert got.outcome == "no lead"
    assert got.sentence.startswith("Not shown: the rest came first")


def test_the_largest_p_over_the_nulls_decides_at_the_first_share(runs):
    got = verdict([with_p(runs[0], 0.06)])
    assert got.level == "not shown"
    assert got.sentence.startswith("Not shown: labellings without meaning lead as much (")
    nulls = {**runs[0].leads[0].nulls}
    nulls[BLOCKS] = replace(nulls[BLOCKS], p=0.4)
    assert "lead as much (block rotations)" in verdict([altered(runs[0], p=0.4, nulls=nulls)]).sentence


def test_a_token_interval_that_contains_one_is_no_claim(runs):
    got = verdict([altered(runs[0], interval=replace(runs[0].leads[0].interval, low=0.99))])
    assert got.level == "not shown"
    assert got.sentence.startswith("Not shown: the token-sampling interval of the lead contains 1 (")
    unknown = replace(runs[0].leads[0].interval, low=np.nan, high=np.nan)
    assert verdict([altered(runs[0], interval=unknown)]).level == "cannot be tested here"


@pytest.mark.parametrize(
    ("low", "high", "level"), [(100.0, 200.0, "cannot be tested here"), (99.0, 100.0, "not shown")]
)
def test_onsets_between_the_same_two_records_are_said_first_and_never_claimed(runs, low, high, level):
    lead = runs[0].leads[0]
    both = [replace(one, low=low, high=high) for one in (lead.frequency, lead.rest)]
    got = verdict([altered(runs[0], frequency=both[0], rest=both[1])])
    assert (got.outcome, got.level) == ("no lead", level)
    assert f"both onsets lie between the same two records (steps {low:g} and {high:g})" in got.sentence
    assert "came before" not in got.sentence


def test_records_that_begin_too_late_cannot_tell(runs):
    got = verdict([replace(runs[0], first_step=4)])
    assert got.level == "cannot be tested here"
    assert "the records begin at step 4, too late to have seen an onset at step " in got.sentence
    assert verdict([replace(runs[0], first_step=1)]).level == "suggested by one run"


def test_a_claim_says_in_its_sentence_what_it_does_not_survive(runs):
    lead = runs[0].leads[0]
    got = verdict([altered(runs[0], rank=replace(lead.rank, lead=1.1, p=0.31), cut=replace(lead.cut, p=np.nan))])
    assert got.level == "suggested by one run"
    assert (
        "came before the rest, but not with the counts' ranks in place of their logarithms (lead 1.1, p = 0.31) and "
        "not when the run is cut at step 30 (undefined there) (lead "
    ) in got.sentence


def test_seeds_say_what_they_do_not_survive_together(runs):
    weak = [altered(run, rank=replace(run.leads[0].rank, p=p)) for run, p in zip(runs, (0.01, 0.01, 0.3), strict=True)]
    got = verdict(weak)
    assert got.level == "shown (3 seeds)"
    assert "but not with the counts' ranks in place of their logarithms (lead " in got.sentence
    assert "p = 0.21)" in got.sentence


def test_over_seeds_p_is_twice_the_mean_and_excess_leads_must_agree(runs):
    got = verdict([with_p(run, p) for run, p in zip(runs, (0.01, 0.02, 0.09), strict=True)])
    assert got.level == "not shown"
    assert "combined p = 0.08" in got.sentence
    less = replace(runs[0].leads[0].excess, value=0.9)
    assert verdict([altered(runs[0], excess=less), *runs[1:]]).level == "not shown"


def test_one_seed_that_cannot_tell_makes_all_untestable(runs):
    got = verdict([*runs[:2], replace(runs[2], first_step=9)])
    assert got.level == "cannot be tested here"
    assert got.sentence.startswith("Cannot be tested here: in 1 of 3 runs, the records begin at step 9")


def test_says_what_is_missing_where_there_is_no_onset(runs):
    nulls = {name: replace(null, p=float("nan")) for name, null in runs[0].leads[0].nulls.items()}
    silent = altered(runs[0], frequency=NO_ONSET, lead=float("nan"), nulls=nulls)
    got = verdict([replace(silent, change_over_noise=1.24)])
    assert got.sentence == (
        "Not shown: the change along frequency is not above that of permuted targets "
        "(1.2 standard deviations, 3 needed) (one run)."
    )
    early = replace(NO_ONSET, low=0.0, high=64.0, status="before the first record")
    hidden = verdict([altered(runs[0], frequency=early, lead=float("nan"), nulls=nulls)])
    assert hidden.level == "cannot be tested here"
    assert "the onset of frequency is not in view, it lies at or before step 64" in hidden.sentence
    alone = altered(runs[0], rest=NO_ONSET, lead=float("nan"), nulls=nulls)
    assert "nothing moved" in verdict([alone]).sentence
    assert verdict([alone, silent_copy(silent)]).shares[0].lead.runs == 0
    three = verdict([*runs[1:], silent])
    assert three.sentence.startswith("Not shown: in 1 of 3 runs, the change along frequency is not above")


def silent_copy(run):
    return replace(run, curves=replace(run.curves, rest=run.curves.rest + 1e-9))


def test_notes_say_what_limits_the_reading(runs):
    limited = replace(runs[0], first_step=16, draws=19, records_used=30)
    limited = altered(limited, interval=replace(runs[0].leads[0].interval, low=0.9), rest=runs[0].leads[0].frequency)
    notes = "\n".join(verdict([limited]).notes)
    for text in ("start after step 0", "fewer than 99 draws", "30 of 41 records", "interval of the lead contains 1"):
        assert text in notes
    assert "rests on interpolation" in notes


def test_text_names_every_number_that_it_rests_on(runs):
    text = verdict(runs).render()
    for part in (
        "Over 3 runs (mean, range)",
        "Run 3: steps 0-40, 41 records, 120 rows x 16",
        "token sampling, one run",
        *NULLS,
        "permutations (weak: shown, not counted)",
        "with the targets' ranks: lead",
        "cut at step 30: lead",
        "excess lead",
        "number of bins: 4:",
        "straight line 1;",
        "random walk",
        "probe correlation against distance (no evidence)",
        "warm-up",
        "of the peak rate",
        "cosine to its final direction",
        "probe.spearman: q = 0.5 at step",
    ):
        assert part in text
    assert "nan" not in text
    assert max(len(line) for line in text.splitlines()) < 500


def test_to_dict_is_json_and_holds_the_numbers(runs):
    got = json.loads(json.dumps(verdict(runs).to_dict(), allow_nan=False))
    assert (got["outcome"], got["level"]) == ("lead", "shown (3 seeds)")
    assert got["runs"][1]["leads"][0]["nulls"][SIGN_FLIPS]["p"] == 0.01
    assert got["runs"][0]["curves"]["steps"] == STEPS.tolist()
    assert got["runs"][0]["straight_line"]["0.5"] == pytest.approx(1.0, abs=1e-5)


def test_plain_turns_what_is_not_finite_into_none():
    assert plain({"a": (np.float64("nan"), np.inf, np.int64(3)), 2: np.array([1.0, np.nan])}) == {
        "a": [None, None, 3],
        "2": [1.0, None],
    }


def test_refuses_what_cannot_be_put_together(runs):
    with pytest.raises(ValueError, match="got no run"):
        verdict([])
    with pytest.raises(ValueError, match="given twice"):
        verdict([runs[0], runs[1], runs[0]])
    with pytest.raises(ValueError, match="different shares"):
        verdict([runs[0], replace(runs[1], leads=runs[1].leads[:1])])


@pytest.mark.parametrize("change", [{"vocab": 96}, {"dims": 5}])
def test_refuses_runs_of_models_that_differ_in_shape(runs, change):
    with pytest.raises(ValueError, match=r"120 x 16 and .* they are not seeds of one model"):
        verdict([runs[0], replace(runs[1], **change)])


def test_the_last_checkpoints_of_a_finished_run_cannot_tell_what_came_first():
    rng = np.random.default_rng(0)
    steps = np.arange(8000, 10001, 500)
    first, change = rng.standard_normal((2, 100, 12))
    clock = np.array([0.0, 0.3, 0.55, 0.8, 1.0])[:, None, None]
    noise = 0.02 * np.sin(np.pi * clock) * rng.standard_normal((5, 100, 12))
    y = change[:, 0] + 0.5 * rng.standard_normal(100)
    run = ArrayTrajectory((first + clock * change + noise).astype(np.float32), steps=steps)
    got = verdict([analyze_run(run, y, draws=19, resamples=20)])
    assert (got.outcome, got.level) == ("no lead", "cannot be tested here")
    assert got.sentence.startswith("Cannot be tested here: the records begin at step 8000, too late to have seen ")
    coarse = ArrayTrajectory(run.matrices, steps=np.array([0, 100, 300, 500, 1000]))
    got = verdict([analyze_run(coarse, y, draws=19, resamples=20)])
    assert got.level == "cannot be tested here"
    assert got.sentence.startswith(
        "Cannot be tested here: both onsets lie between the same two records (steps 100 and 300) (lead "
    )
