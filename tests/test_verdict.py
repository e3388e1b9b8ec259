import json
from dataclasses import replace

import numpy as np
import pytest

from trainhooks.convergence import ArrayTrajectory, Series, analyze_run
from trainhooks.convergence.lead import MATCHED, SIGN_FLIPS
from trainhooks.convergence.onset import NO_ONSET, Onset
from trainhooks.verdict import plain, verdict

STEPS = np.arange(41)


def run_of(seed, *, frequency_power=0.5, rest_power=1.0):
    """A run of two strong directions, in which the targets' part moves on its own clock; analysed."""
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(np.column_stack([np.ones(80), rng.standard_normal((80, 2))]))[0][:, 1:]
    y = left @ [0.8, 0.6]
    final = left * [10.0, 6.0] @ rng.standard_normal((2, 6)) + 0.02 * rng.standard_normal((80, 6))
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


def with_p(run, name, p):
    nulls = run.leads[0].nulls
    return altered(run, nulls={**nulls, name: replace(nulls[name], p=p)})


def test_one_run_claims_no_more_than_one_run(runs):
    got = verdict(runs[:1])
    lead = runs[0].leads[0]
    assert lead.lead == pytest.approx(2.0, rel=0.05)
    assert (got.outcome, got.about_model, got.seeds) == ("lead", False, 1)
    assert got.sentence == (
        f"In this run frequency came before the rest (lead {lead.lead:.3g} at q = 0.5, "
        "p = 0.01 against 99 matched labellings; one run)."
    )
    assert any("needs three" in note for note in got.notes)


def test_three_runs_speak_of_the_model(runs):
    got = verdict(runs)
    leads = [run.leads[0].lead for run in runs]
    assert (got.outcome, got.about_model, got.seeds) == ("lead", True, 3)
    assert got.sentence.startswith("In all 3 runs of this model frequency came before the rest (mean lead")
    assert got.shares[0].lead.mean == pytest.approx(np.mean(leads))
    assert (got.shares[0].lead.low, got.shares[0].lead.high) == (min(leads), max(leads))
    assert got.shares[0].p == (0.01, 0.01, 0.01)
    assert not any("needs three" in note for note in got.notes)


def test_two_runs_are_too_few_for_the_model(runs):
    got = verdict(runs[:2])
    assert (got.outcome, got.about_model) == ("lead", False)
    assert got.sentence.endswith("a verdict on a model needs three seeds.")


def test_a_straight_line_has_no_lead(straight):
    got = verdict([straight])
    assert got.outcome == "no lead"
    assert got.sentence.startswith("No lead shown in this run (lead 1 at q = 0.5, p = ")


def test_one_run_without_a_lead_is_enough_for_none(runs, straight):
    got = verdict([*runs, straight])
    assert got.outcome == "no lead"
    assert got.sentence.startswith("No lead shown: 3 of 4 runs have one (mean lead")


def test_a_late_part_is_no_lead_however_small_its_p(runs):
    got = verdict([altered(runs[0], lead=0.9)])
    assert got.outcome == "no lead"


def test_p_decides_against_matched_labellings_at_the_first_share(runs):
    assert verdict([with_p(runs[0], MATCHED, 0.06)]).outcome == "no lead"
    beaten = verdict([with_p(runs[0], SIGN_FLIPS, 0.06)])
    assert beaten.outcome == "lead"
    assert any("not sign flips" in note for note in beaten.notes)


def test_says_what_is_missing_where_there_is_no_onset(runs):
    nulls = {name: replace(null, p=float("nan")) for name, null in runs[0].leads[0].nulls.items()}
    silent = altered(runs[0], frequency=NO_ONSET, lead=float("nan"), nulls=nulls)
    sentence = verdict([replace(silent, change_over_noise=1.24)]).sentence
    assert sentence.startswith("No lead shown: the change along frequency is not above that of permuted targets (1.2 ")
    early = Onset(float("nan"), 0.0, 64.0, "before the first record")
    hidden = altered(runs[0], frequency=early, lead=float("nan"), nulls=nulls)
    assert "the onset of frequency is not in view, it lies at or before step 64" in verdict([hidden]).sentence
    alone = altered(runs[0], rest=NO_ONSET, lead=float("nan"), nulls=nulls)
    assert "nothing moved" in verdict([alone]).sentence
    assert verdict([alone, silent_copy(silent)]).shares[0].lead.runs == 0


def silent_copy(run):
    return replace(run, curves=replace(run.curves, rest=run.curves.rest + 1e-9))


def test_notes_say_what_limits_the_reading(runs):
    limited = replace(runs[0], first_step=16, draws=19, records_used=30, correlation=0.1)
    limited = altered(limited, interval=replace(runs[0].leads[0].interval, low=0.9), rest=runs[0].leads[0].frequency)
    notes = "\n".join(verdict([limited]).notes)
    for text in ("start after step 0", "fewer than 99 draws", "30 of 41 records", "interval of the lead contains 1"):
        assert text in notes
    assert "rests on interpolation" in notes
    assert "no stronger a null" in notes


def test_text_names_every_number_that_it_rests_on(runs):
    text = verdict(runs).render()
    for part in (
        "Over 3 runs (mean, range)",
        "Run 3: steps 0-40, 41 records, 80 rows x 6",
        "token sampling, one run",
        "matched labellings",
        "sign flips",
        "permutations",
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
    assert got["outcome"] == "lead"
    assert got["runs"][1]["leads"][0]["nulls"][MATCHED]["p"] == 0.01
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
    with pytest.raises(ValueError, match=r"80 x 6 and .* they are not seeds of one model"):
        verdict([runs[0], replace(runs[1], **change)])
