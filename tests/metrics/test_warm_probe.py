"""The probe's records that need no Gram: what they find is what sums would have found."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import trainhooks as th
from trainhooks.metrics import frequency_probe
from trainhooks.metrics.base import State
from trainhooks.metrics.frequency_probe import FrequencyProbe
from trainhooks.metrics.lead_parts import LeadParts
from trainhooks.metrics.shared_sums import want_gram
from trainhooks.metrics.spectrum import Spectrum
from trainhooks.model import OutputEmbedding
from trainhooks.probe import frequency_target, permutation, warm_slopes

VOCAB, DIM = 1200, 24
COUNTS = np.random.default_rng(0).permutation((1e6 / np.arange(1, VOCAB + 1)).astype(np.int64))
COUNTS[:40] = 0
WHOLE_FIGURES = ("rank", "excluded_rows")


@pytest.fixture(autouse=True)
def sums(monkeypatch):
    """Narrow heads may start warm too; how often sums were made."""
    monkeypatch.setattr(warm_slopes, "MIN_DIM", 8)
    made = []
    plain = frequency_probe.sum_rows
    monkeypatch.setattr(frequency_probe, "sum_rows", lambda *a, **k: made.append(1) or plain(*a, **k))
    return made


def state(embedding, step=0):
    head = OutputEmbedding(embedding, "lm_head.weight", nn.Linear(1, 1))
    return State(step=step, model=nn.Linear(1, 1), head=head, groups={})


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def head(*, seed=0, noise=1.0, vocab=VOCAB, dim=DIM):
    y = -torch.from_numpy(np.log(np.maximum(np.resize(COUNTS, vocab), 0.5)))
    return noise * draw(vocab, dim, seed=seed) + (y - y.mean()).float()[:, None] * draw(dim, seed=seed + 1) / dim


def walk(first, *, count=6, size=0.003):
    """A head that moves, with some momentum, as under an optimizer."""
    now, heads, step = first.clone(), [], torch.zeros_like(first)
    for seed in range(count):
        heads.append(now.clone())
        step = 0.7 * step + size * draw(*first.shape, seed=seed + 100)
        now = now + step
    return heads


def assert_same_figures(values, expected, *, but=()):
    """To 1e-5, slopes 1e-4 of themselves; rank and counts to the digit."""
    assert set(values) == set(expected)
    for name, value in expected.items():
        short, found = name.removeprefix("probe."), np.asarray(values[name], dtype=np.float64)
        if short in ("pivot", "drift", *but):
            continue
        wanted = np.asarray(value, dtype=np.float64)
        if "slope" in short:
            assert np.linalg.norm(found - wanted) <= 1e-4 * np.linalg.norm(wanted), name
        else:
            # two neighbours of 230 that change places move a rank correlation by up to 4e-5
            tolerance = 0 if short in WHOLE_FIGURES else 1e-4 if "spearman" in short else 1e-5
            np.testing.assert_allclose(
                found, wanted, rtol=0, atol=tolerance * max(1, np.abs(wanted).max()), err_msg=name
            )


def run(metric, heads):
    return [metric.compute(state(one, step)) for step, one in enumerate(heads)]


def cold(one, **settings):
    return FrequencyProbe(COUNTS, **settings).compute(state(one))


@pytest.mark.parametrize("mean", [0.0, 1.5, 300.0])
def test_a_moving_head_is_summed_once_and_has_the_same_figures(sums, mean):
    heads = walk(head() + mean * draw(DIM, seed=9))
    found = run(FrequencyProbe(COUNTS), heads)
    assert len(sums) == 1
    for values, one in zip(found, heads, strict=True):
        assert_same_figures(values, cold(one))
    cosine = torch.cosine_similarity(found[-2]["probe.slope"], found[-1]["probe.slope"], dim=0)
    assert float(found[-1]["probe.drift"]) == pytest.approx(float(cosine), abs=1e-9)


def test_a_slow_twin_in_float64_agrees():
    heads = walk(head())
    values = run(FrequencyProbe(COUNTS), heads)[-1]
    ids = torch.from_numpy(np.flatnonzero(COUNTS))
    x, y = heads[-1][ids].double().numpy(), frequency_target(COUNTS)[ids].numpy()
    wide = np.column_stack([x, np.ones(len(x))])
    np.testing.assert_allclose(
        values["probe.slope"], np.linalg.lstsq(wide, y, rcond=None)[0][:-1], rtol=1e-4, atol=1e-7
    )
    for target, name in ((y, "heldout_r2"), (y[permutation(ids)], "permuted_heldout_r2")):
        error = spread = 0.0
        for fold in range(5):
            out = ids.numpy() % 5 == fold
            solved = np.linalg.lstsq(wide[~out], target[~out], rcond=None)[0]
            error += np.square(target[out] - wide[out] @ solved).sum()
            spread += np.square(target[out] - target[~out].mean()).sum()
        assert float(values[f"probe.{name}"]) == pytest.approx(1 - error / spread, abs=1e-5)


def test_a_planted_slope_is_found(sums):
    """The target is linear in the rows, and stays so while the slope moves."""
    y = frequency_target(np.maximum(COUNTS, 1)).float()
    metric = FrequencyProbe(COUNTS)
    for step in range(4):
        planted = draw(DIM, seed=1) + 0.02 * step * draw(DIM, seed=2)
        rows = draw(VOCAB, DIM, seed=3)
        rows += ((y - rows @ planted) / planted.square().sum())[:, None] * planted
        values = metric.compute(state(rows, step))
        assert float(values["probe.r2"]) == pytest.approx(1, abs=1e-5)
        assert float(torch.dist(values["probe.slope"], planted.double()) / planted.norm()) < 1e-4


def test_scale_and_a_common_shift_change_no_figure(sums):
    heads = walk(head())
    plain = run(FrequencyProbe(COUNTS), heads)[-1]
    moved = run(FrequencyProbe(COUNTS), [4 * one + 0.5 for one in heads])[-1]
    assert len(sums) == 2
    assert_same_figures(moved, plain, but=("slope", "intercept", "fold_slope", "fold_intercept"))
    assert float(torch.dist(4 * moved["probe.slope"], plain["probe.slope"]) / plain["probe.slope"].norm()) < 1e-4


def test_padding_may_be_anything_finite(sums):
    padded = [torch.cat([one, torch.full((9, DIM), 3.0)]) for one in walk(head())]
    metric = FrequencyProbe(COUNTS, vocab_size=VOCAB)
    found = run(metric, padded)
    assert len(sums) == 1
    assert_same_figures(found[-1], cold(padded[-1], vocab_size=VOCAB))


def duplicated(one):
    return one.index_copy(1, torch.tensor([3]), one[:, 7:8])


def nearly_collinear(one):
    return one.index_copy(1, torch.tensor([3]), one[:, 7:8] + 1e-3 * draw(len(one), 1, seed=5))


LOST = {
    "a duplicated column": duplicated,
    "nearly collinear columns": nearly_collinear,
    "a column of zeros": lambda one: one.index_fill(1, torch.tensor([3]), 0),
    "a constant column": lambda one: one.index_fill(1, torch.tensor([3]), 2.5),
    "a zero head": torch.zeros_like,
    "rows that are all equal": lambda one: one[:1].expand_as(one).clone(),
    "a column that one fold alone has": lambda one: one.index_put(
        (torch.arange(len(one)) % 5 != 2, torch.tensor(3)), torch.tensor(0.0)
    ),
}


@pytest.mark.parametrize("name", LOST)
@pytest.mark.parametrize("idle", [False, True])
def test_a_head_that_loses_a_direction_has_the_answer_of_sums(sums, name, idle):
    """Also where no prediction needed the direction: its slope was 0, but for noise."""
    before = head(noise=0.2 if idle else 1.0)
    if idle:
        before[:, 3] = 1e-4 * draw(VOCAB, seed=4)
    metric = FrequencyProbe(COUNTS)
    metric.compute(state(before))
    lost = LOST[name](before)
    values, expected = metric.compute(state(lost, 1)), cold(lost)
    assert len(sums) == 3, "sums were made for it"
    for figure, value in expected.items():
        if figure != "probe.drift":
            np.testing.assert_array_equal(values[figure], value, err_msg=figure)
    again = metric.compute(state(before, 2))
    assert_same_figures(again, cold(before))


def test_slopes_that_go_on_begin_where_they_are_heading():
    """A head whose slopes move steadily needs fewer passes than one that was shown each matrix by itself."""
    y = frequency_target(np.maximum(COUNTS, 1)).float()
    rows, metric, passes = draw(VOCAB, DIM, seed=3), FrequencyProbe(COUNTS), []
    for step in range(7):
        planted = draw(DIM, seed=1) + 0.05 * step * draw(DIM, seed=2)
        one = rows + ((y - rows @ planted) / planted.square().sum())[:, None] * planted
        if metric._starts:
            refined = warm_slopes.refine(one, metric._starts[-1][1])
            passes.append(None if refined is None else refined.passes)
        metric.compute(state(one, step))
    assert None not in passes
    assert passes[-1] <= passes[0]
    start = metric._starts[-1][1]
    assert torch.linalg.vector_norm(start.ahead[:2]) > 0.5 * torch.linalg.vector_norm(start.moved[:2]) > 0


@pytest.mark.parametrize("fold", range(5))
def test_a_direction_that_all_sets_but_one_have_is_seen_by_its_half(sums, fold):
    """A mix of columns, no one of them constant, that only the rows of one fold spread along from now on."""
    before, metric = head(), FrequencyProbe(COUNTS)
    metric.compute(state(before))
    along = draw(DIM, seed=11)
    along /= along.norm()
    others = torch.arange(VOCAB) % 5 != fold
    lost = before - (before @ along)[:, None] * along * others[:, None]
    values, expected = metric.compute(state(lost, 1)), cold(lost)
    assert len(sums) == 3
    for figure, value in expected.items():
        if figure != "probe.drift":
            np.testing.assert_array_equal(values[figure], value, err_msg=figure)


@pytest.mark.parametrize("size", [1e-12, 1e12])
def test_the_unit_of_a_head_does_not_matter(sums, size):
    heads = walk(head())
    scaled = run(FrequencyProbe(COUNTS), [size * one for one in heads])
    assert len(sums) == 1
    plain = cold(heads[-1])
    assert_same_figures(scaled[-1], plain, but=("slope", "fold_slope"))
    assert (
        float(torch.dist(size * scaled[-1]["probe.slope"], plain["probe.slope"]) / plain["probe.slope"].norm()) < 1e-4
    )


@pytest.mark.parametrize("size", [0.1, 1.0, 30.0])
def test_a_head_that_jumps_has_the_same_figures(size):
    first = head()
    heads = [first, size * head(seed=7), size * head(seed=7) + 0.01, first]
    for values, one in zip(run(FrequencyProbe(COUNTS), heads), heads, strict=True):
        assert_same_figures(values, cold(one))


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("far", [10.0, 100.0])
def test_a_mean_row_that_goes_far_has_the_same_figures(far, at_once):
    """Rows far from what is taken off them lose digits in float32, which no residual that is carried on shows."""
    away = far * draw(DIM, seed=5)
    heads = [one + away * ((k > 1) if at_once else k / 2) for k, one in enumerate(walk(head()))]
    for values, one in zip(run(FrequencyProbe(COUNTS), heads), heads, strict=True):
        assert_same_figures(values, cold(one))


@pytest.mark.parametrize("bad", [torch.nan, 1e30])
def test_rows_that_are_not_finite_are_summed_without(sums, bad):
    heads = walk(head(), count=5)
    for one in heads[1:]:
        one[77, 2] = bad
    found = run(FrequencyProbe(COUNTS), heads)
    assert len(sums) == 5
    for values, one in zip(found[1:], heads[1:], strict=True):
        assert float(values["probe.excluded_rows"]) == 1
        assert_same_figures(values, cold(one))


def test_a_bad_row_outside_the_mask_is_tried_ever_less(sums, monkeypatch):
    heads = walk(head(), count=12)
    for one in heads:
        one[5, 2] = torch.nan  # count 0
    tried = []
    plain = frequency_probe.refine
    monkeypatch.setattr(frequency_probe, "refine", lambda *a: tried.append(1) or plain(*a))
    found = run(FrequencyProbe(COUNTS), heads)
    assert len(sums) == 12
    assert len(tried) <= 4
    assert_same_figures(found[-1], cold(heads[-1]))


def test_who_takes_the_gram_renews_the_factor(sums):
    """Spectrum at every third record, as a recorder says it."""
    metric, spectrum = FrequencyProbe(COUNTS), Spectrum(mask=torch.from_numpy(COUNTS > 0))
    for step, one in enumerate(walk(head(), count=7)):
        shown = state(one, step)
        want_gram(shown, step % 3 == 0)
        values = metric.compute(shown)
        assert_same_figures(values, cold(one))
        if step % 3 == 0:
            found = spectrum.compute(shown)
            for name, value in spectrum.compute(state(one)).items():
                torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)
    assert len(sums) == 3 + 7


def test_a_recorder_says_what_is_due(sums):
    model = nn.Linear(DIM, VOCAB, bias=False)
    heads = walk(head(), count=7)
    metrics = [
        FrequencyProbe(COUNTS),
        Spectrum(mask=torch.from_numpy(COUNTS > 0), schedule=th.Every(3)),
        LeadParts(COUNTS),
    ]
    sink = th.MemorySink()
    model.get_output_embeddings = lambda: model
    with torch.no_grad():
        model.weight.copy_(heads[0])
    with th.Recorder(model, sinks=[sink], metrics=metrics, counts=None) as recorder:
        for one in heads[1:]:
            recorder.begin_step()
            recorder.before_update()
            with torch.no_grad():
                model.weight.copy_(one)
            recorder.after_update()
    assert len(sums) == 3
    for record, one in zip(sink.records, heads, strict=True):
        values = {name: value for name, value in record.values.items() if name.startswith("probe.")}
        assert_same_figures(values, cold(one))
        assert ("spectrum.stable_rank" in record.values) == (record.step % 3 == 0)


def test_other_metrics_find_the_mean_row(sums):
    first, heads = head(), walk(head(), count=3)
    metric, lead = FrequencyProbe(COUNTS), LeadParts(COUNTS)
    for step, one in enumerate(heads):
        shown = replace(state(one, step), initial_head=first)
        metric.compute(shown)
        values = lead.compute(shown)
    expected = LeadParts(COUNTS).compute(replace(state(heads[-1], 2), initial_head=first))
    for name, value in expected.items():
        torch.testing.assert_close(values[name], value, rtol=1e-5, atol=1e-7, msg=name)
    assert len(sums) == 1


def test_asking_twice_gives_the_same_answer(sums):
    metric, heads = FrequencyProbe(COUNTS), walk(head(), count=3)
    run(metric, heads[:2])
    first, second = (metric.compute(state(heads[2], 2)) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(torch.as_tensor(second[name]), torch.as_tensor(value)), name
    assert len(sums) == 1


def test_a_resumed_run_begins_with_sums(sums):
    heads = walk(head(), count=4)
    through, before, after = (FrequencyProbe(COUNTS) for _ in range(3))
    expected = run(through, heads)
    run(before, heads[:3])
    assert set(before.state_dict()) == {"slopes"}
    after.load_state_dict(before.state_dict())
    sums.clear()
    values = after.compute(state(heads[3], 3))
    assert len(sums) == 1
    assert_same_figures(values, expected[3])
    assert float(values["probe.drift"]) == pytest.approx(float(expected[3]["probe.drift"]), abs=1e-6)


def test_a_factor_is_not_used_for_ever(sums, monkeypatch):
    monkeypatch.setattr(warm_slopes, "MOST_RECORDS", 4)
    still = head()
    found = run(FrequencyProbe(COUNTS), [still] * 11)
    assert len(sums) == 3
    assert len({float(values["probe.rank"]) for values in found}) == 1


def test_half_precision_is_read_as_float32(sums):
    heads = [one.bfloat16() for one in walk(head(), count=3)]
    found = run(FrequencyProbe(COUNTS), heads)
    assert len(sums) == 1
    assert_same_figures(found[-1], cold(heads[-1]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_default_dtype_is_the_loops(sums, dtype):
    heads, before = [one.bfloat16() for one in walk(head(), count=3)], torch.get_default_dtype()
    expected = run(FrequencyProbe(COUNTS), heads)
    sums.clear()
    torch.set_default_dtype(dtype)
    try:
        found = run(FrequencyProbe(COUNTS), heads)
    finally:
        torch.set_default_dtype(before)
    assert len(sums) == 1
    for values, wanted in zip(found, expected, strict=True):
        assert_same_figures(values, wanted)


def test_a_head_that_went_to_another_device_is_summed():
    metric = FrequencyProbe(COUNTS)
    metric.compute(state(head()))
    ((_, start),) = metric._starts
    assert warm_slopes.refine(head(), start) is not None
    assert warm_slopes.refine(head().to("meta"), start) is None


def test_what_does_not_fit_is_summed(sums):
    """float64, another number of rows."""
    metric, wide = FrequencyProbe(COUNTS, vocab_size=VOCAB), head()
    for step, one in enumerate((wide, wide.double(), wide, torch.cat([wide, torch.zeros(4, DIM)]))):
        assert_same_figures(metric.compute(state(one, step)), cold(one, vocab_size=VOCAB))
    assert len(sums) == 8


def test_narrow_heads_are_summed_at_every_record(sums, monkeypatch):
    monkeypatch.setattr(warm_slopes, "MIN_DIM", DIM + 1)
    metric, heads = FrequencyProbe(COUNTS), walk(head(), count=3)
    found = run(metric, heads)
    assert len(sums) == 3
    for name, value in cold(heads[-1]).items():
        if name != "probe.drift":
            assert torch.equal(torch.as_tensor(found[-1][name]), torch.as_tensor(value)), name
    assert metric.kept_bytes(state(heads[0])) == {"host": 0}
    monkeypatch.setattr(warm_slopes, "MIN_DIM", DIM)
    metric = FrequencyProbe(COUNTS)
    run(metric, heads[:1])
    ((_, start),) = metric._starts
    held = [*start.factor[:1], start.sets.inside, start.sets.y, start.sets.folds]
    assert metric.kept_bytes(state(heads[0])) == {"host": sum(one.nbytes for one in held)}
