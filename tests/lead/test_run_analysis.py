import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from synthetic_runs import broad_run

from trainhooks.lead import ArrayTrajectory, Series, analyze_run, onset

DATA = Path(os.environ.get("TRAINHOOKS_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
SHERLOCK = DATA / "series" / "charrnn-sherlock"


class OneAtATime:
    """A trajectory that hands out one buffer, overwritten at every read, and notes the reads."""

    def __init__(self, run):
        self.run, self.steps, self.reads = run, run.steps, []
        self.buffer = np.empty_like(run[0])

    def __len__(self):
        return len(self.run)

    def __getitem__(self, index):
        self.reads.append(index)
        np.copyto(self.buffer, self.run[index])
        return self.buffer.copy()


@pytest.fixture(scope="module")
def planted():
    return broad_run(frequency_middle=20, rest_middle=40, rows=200, dims=16, last=80)


@pytest.fixture(scope="module")
def analysis(planted):
    run, y = planted
    rates = np.interp(run.steps, [0, 30, 80], [0.0, 1e-3, 1e-4])
    seen = {"loss": Series(run.steps, 9.0 - np.log1p(run.steps)), "flat": Series(run.steps, np.ones(81))}
    return analyze_run(run, y, learning_rate=Series(run.steps, rates), series=seen)


def test_finds_the_planted_lead_with_all_that_goes_beside(analysis):
    lead = analysis.leads[0]
    assert lead.lead == pytest.approx(2.0, rel=0.05)
    assert lead.p == pytest.approx(0.01)
    assert [one.q for one in analysis.leads] == [0.5, 0.9]
    assert analysis.change_over_noise > 3.0
    assert analysis.correlation == pytest.approx(0.6, abs=0.02)
    assert analysis.straight_line[0.5] == pytest.approx(1.0, rel=1e-5)
    assert analysis.random_walk[0.5].distance.step == pytest.approx(60.0, abs=3.0)
    assert (analysis.records_used, analysis.records_total, analysis.rows, analysis.dims) == (81, 81, 200, 16)
    assert len(analysis.picture.steps) <= 24
    assert set(analysis.picture.onsets) == {0.5, 0.9}


def test_curves_are_the_progress_behind_the_onsets(analysis):
    curves, lead = analysis.curves, analysis.leads[0]
    assert onset(curves.steps, curves.frequency, q=0.5).step == pytest.approx(lead.frequency.step)
    assert onset(curves.steps, curves.rest, q=0.5).step == pytest.approx(lead.rest.step)
    assert (curves.distance[0], curves.distance[-1]) == (pytest.approx(1.0, abs=1e-6), 0.0)
    assert curves.cosine[-1] == pytest.approx(1.0)


def test_places_the_onsets_in_the_schedule_and_dates_other_series(analysis):
    placed = analysis.placements[0.5]
    assert placed["frequency"].phase == "warm-up"
    assert placed["frequency"].share_of_peak == pytest.approx(20 / 30, abs=0.02)
    assert placed["rest"].phase == "decay"
    assert analysis.series_onsets["loss"][0.5].step == pytest.approx(8.0)
    assert analysis.series_onsets["flat"][0.5].status == "none"


def test_reads_the_ends_and_three_quarters_and_then_each_record_once(planted):
    run, y = planted
    reader = OneAtATime(run)
    got = analyze_run(reader, y, draws=19, resamples=0)
    assert reader.reads == [80, 0, 60, *range(81)]
    assert got.leads[0].lead == pytest.approx(2.0, rel=0.05)
    assert np.isnan(got.leads[0].interval.low)


def test_thins_a_long_run_and_says_so(planted, analysis):
    run, y = planted
    got = analyze_run(run, y, draws=19, max_records=24, resamples=0)
    assert got.records_used <= 24 < got.records_total == 81
    assert (got.first_step, got.last_step) == (0, 80)
    assert got.leads[0].lead == pytest.approx(analysis.leads[0].lead, rel=0.05)


def test_masked_rows_are_never_looked_at(planted):
    run, y = planted
    padded = np.concatenate([run.matrices, np.full((81, 20, 16), np.nan, np.float32)], axis=1)
    mask = np.arange(220) < 200
    targets = np.r_[y, np.full(20, np.inf)]
    got = analyze_run(ArrayTrajectory(padded, steps=run.steps), targets, mask=mask, draws=19, resamples=3)
    assert got.leads == analyze_run(run, y, draws=19, resamples=3).leads


def test_permuted_targets_give_no_onset(planted):
    run, y = planted
    got = analyze_run(run, np.random.default_rng(1).permutation(y), draws=39, resamples=0)
    assert got.change_over_noise < 3.0
    assert got.leads[0].frequency.status == "none"
    assert np.isnan(got.leads[0].lead)


def test_a_late_start_puts_an_early_onset_out_of_view(planted):
    run, y = planted
    late = ArrayTrajectory(run.matrices[[0, 60, 70, 80]], steps=np.array([1000, 1060, 1070, 1080]))
    lead = analyze_run(late, y, draws=19, resamples=0).leads[0]
    assert lead.frequency.status == lead.rest.status == "before the first record"
    assert np.isnan(lead.lead)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": ()}, "got no share"),
        ({"q": (1.5,)}, "between 0 and 1"),
        ({"draws": 18}, "below 19 draws"),
        ({"max_records": 2}, "3 or more records"),
        ({"mask": np.arange(200) < 10}, "leaves 10 rows"),
        ({"mask": np.arange(150) < 150}, "150 entries of type bool and y has 200"),
    ],
)
def test_refuses_settings_that_cannot_work(planted, change, message):
    run, y = planted
    with pytest.raises(ValueError, match=message):
        analyze_run(run, y, **change)


def test_refuses_runs_that_cannot_be_analysed(planted):
    run, y = planted
    with pytest.raises(ValueError, match="got 2 records"):
        analyze_run(ArrayTrajectory(run.matrices[:2], steps=run.steps[:2]), y)
    with pytest.raises(ValueError, match="increase strictly"):
        analyze_run(ArrayTrajectory(run.matrices[:3], steps=np.array([0, 5, 5])), y)
    with pytest.raises(ValueError, match="nothing moved"):
        analyze_run(ArrayTrajectory(run.matrices[[3, 4, 3]], steps=np.array([0, 5, 9])), y)
    with pytest.raises(ValueError, match="constant"):
        analyze_run(run, np.ones(200))
    with pytest.raises(ValueError, match="200 rows"):
        analyze_run(run, y[:150])


@pytest.mark.skipif(not SHERLOCK.is_dir(), reason=f"no series at {SHERLOCK}; set TRAINHOOKS_DATA to the data folder")
def test_a_real_series_of_three_checkpoints():
    steps = np.array([0, 1000, 2000])
    weights = [load_file(SHERLOCK / f"step{step}" / "model.safetensors")["embed_out.weight"] for step in steps]
    vocabulary = json.loads((SHERLOCK / "step0" / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    seen = Counter((SHERLOCK / "corpus.txt").read_text(encoding="utf-8"))
    counts = np.array([seen[token] for token in vocabulary], dtype=np.float64)
    mask = counts > 0
    y = -np.log(np.maximum(counts, 0.5) / counts.sum())
    got = analyze_run(ArrayTrajectory(np.stack(weights), steps=steps), y, mask=mask, draws=39, resamples=20)
    assert (got.rows, got.dims, got.records_used) == (mask.sum(), 128, 3)
    assert got.curves.frequency[-1] == pytest.approx(1.0)
    assert got.curves.rest[0] == 0.0
    assert got.leads[0].rest.status == "found"
    assert got.straight_line[0.5] == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e17, 1e30])
def test_the_unit_of_the_embedding_changes_nothing(planted, analysis, scale):
    run, y = planted
    scaled = (run.matrices.astype(np.float64) * scale).astype(np.float32)
    got = analyze_run(ArrayTrajectory(scaled, steps=run.steps), y, q=(0.5,), draws=19, resamples=5)
    assert got.leads[0].lead == pytest.approx(analysis.leads[0].lead, rel=1e-4)
    assert got.straight_line[0.5] == pytest.approx(1.0, abs=1e-5)
    assert np.isfinite(got.curves.distance).all()


def test_refuses_a_run_in_which_all_rows_only_moved_together(planted):
    run, y = planted
    drift = 0.1 * np.arange(len(run), dtype=np.float32)[:, None, None]
    with pytest.raises(ValueError, match="up to one shift of all rows and rounding"):
        analyze_run(ArrayTrajectory(run.matrices[-1:] + drift, steps=run.steps), y)


def test_refuses_one_exploded_record_between_sound_ends(planted):
    run, y = planted
    broken = run.matrices.copy()
    broken[3, 7] *= 1e10
    with pytest.raises(ValueError, match="leave that record out"):
        analyze_run(ArrayTrajectory(broken, steps=run.steps), y)
