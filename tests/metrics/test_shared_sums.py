from dataclasses import replace

import numpy as np
import pytest
import torch
from metric_states import Tiny, make_state
from naive_metrics import centred, cka, draw, unbiased_hsic

from trainhooks.metrics.frequency_probe import FrequencyProbe
from trainhooks.metrics.geometry import HeadGeometry
from trainhooks.metrics.shared_sums import RowsOfMask, head_sums
from trainhooks.metrics.spectrum import Spectrum
from trainhooks.numerics import row_sums
from trainhooks.numerics.row_sums import RowSet

COUNTS = np.arange(60) % 7 * 100
MASK = torch.from_numpy(COUNTS > 0)


@pytest.fixture
def passes(monkeypatch):
    """How often a pass of its own was made for the Gram."""
    made = []
    plain = row_sums.gram_of_ids
    monkeypatch.setattr(row_sums, "gram_of_ids", lambda *a, **k: made.append(1) or plain(*a, **k))
    return made


def records(*, count=4, size=0.1, metrics, dtype=torch.float32):
    """The values of a run of records, each shown what a recorder would keep."""
    model = Tiny(60, 6).to(dtype)
    initial = previous = None
    found = []
    for step in range(count):
        state = replace(make_state(model=model, step=step), initial_head=initial, previous_head=previous)
        found.append({name: value for metric in metrics for name, value in metric.compute(state).items()})
        previous = model.head.weight.detach().float().clone()
        initial = previous if initial is None else initial
        with torch.no_grad():
            model.head.weight.add_(size * draw(60, 6, seed=step + 50).to(dtype))
    return found, previous


@pytest.mark.parametrize("mask", [None, MASK])
def test_sums_match_their_twin_and_are_kept_for_the_record(mask, passes):
    state = make_state(vocab=60)
    rows = RowsOfMask(mask).of(state.output_embedding)
    sums = head_sums(state, rows)
    kept = state.output_embedding if mask is None else state.output_embedding[mask]
    np.testing.assert_allclose(sums.gram.numpy(), centred(kept).T @ centred(kept), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(sums.mean_row.numpy(), kept.double().mean(0).numpy(), rtol=1e-5, atol=1e-6)
    assert head_sums(state, RowsOfMask(mask).of(state.output_embedding)) is sums
    assert len(passes) == 1


def test_the_probes_sums_serve_the_others_over_the_same_rows(passes):
    state = make_state(vocab=60)
    FrequencyProbe(COUNTS).compute(state)
    shared = Spectrum(mask=MASK).compute(state)
    assert not passes
    alone = Spectrum(mask=MASK).compute(make_state(vocab=60))
    for name, value in alone.items():
        torch.testing.assert_close(value, shared[name], rtol=1e-5, atol=1e-6, msg=name)
    Spectrum().compute(state)
    assert len(passes) == 2  # alone, and over other rows


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_is_not_hidden_by_the_probe(bad):
    state = make_state(vocab=60)
    with torch.no_grad():
        state.head.weight[8, 1] = bad
    probe = FrequencyProbe(COUNTS).compute(state)
    assert float(probe["probe.excluded_rows"]) == 1
    assert probe["probe.r2"].isfinite()
    for metric in (Spectrum(mask=MASK), HeadGeometry(mask=MASK)):
        assert all(torch.as_tensor(value).isnan().all() for value in metric.compute(state).values())


def test_a_masked_row_may_hold_anything():
    state = make_state(vocab=60)
    with torch.no_grad():
        state.head.weight[7, 1] = float("nan")  # count 0
    FrequencyProbe(COUNTS).compute(state)
    values = {**Spectrum(mask=MASK).compute(state), **HeadGeometry(mask=MASK).compute(state)}
    assert values["spectrum.stable_rank"].isfinite()
    assert values["geometry.row_norm"].isfinite()


def test_equal_rows_have_no_spectrum_after_the_probe():
    state = make_state(vocab=60)
    with torch.no_grad():
        state.head.weight.copy_(draw(1, 6).float().expand(60, 6))
    FrequencyProbe(COUNTS).compute(state)
    values = Spectrum(mask=MASK).compute(state)
    assert float(values["spectrum.stable_rank"]) == 0
    assert values["spectrum.top_share"].isnan()


def test_a_sequence_costs_one_gram_a_record_and_is_right(passes):
    found, _ = records(metrics=[HeadGeometry()])
    assert len(passes) == 4
    model, heads = Tiny(60, 6), []
    for step in range(4):
        heads.append(model.head.weight.detach().clone())
        with torch.no_grad():
            model.head.weight.add_(0.1 * draw(60, 6, seed=step + 50).float())
    for step in (1, 2, 3):
        expected = cka(heads[step], heads[step - 1], unbiased_hsic)
        assert float(found[step]["geometry.cka_to_previous"]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_of_the_head(dtype):
    found, _ = records(metrics=[HeadGeometry()], dtype=dtype)
    assert all(0 < float(f["geometry.cka_to_previous"]) <= 1 for f in found[1:])


def test_kept_sums_of_another_record_are_not_taken(passes):
    """A metric on a sparser schedule than the recorder meets a previous head that it has not seen."""
    metric = HeadGeometry()
    metric.compute(make_state(vocab=60))
    previous = draw(60, 6, seed=9).float()
    state = replace(make_state(vocab=60, step=7), previous_head=previous)
    expected = HeadGeometry().compute(state)
    passes.clear()
    values = metric.compute(replace(state, shared={}))
    assert len(passes) == 1  # which sums the previous head too
    for name, value in expected.items():
        assert torch.equal(value, values[name]), name


def test_a_resumed_metric_goes_on_to_the_bit_and_asking_twice_changes_nothing(passes):
    first, second = HeadGeometry(mask=MASK), HeadGeometry(mask=MASK)
    _, previous = records(metrics=[first], count=3)
    second.load_state_dict(first.state_dict())
    passes.clear()
    shown = replace(make_state(model=Tiny(60, 6), step=3), previous_head=previous)
    values = [metric.compute(replace(shown, shared={})) for metric in (first, second, first)]
    assert len(passes) == 3  # this record's alone
    for name, value in values[0].items():
        assert torch.equal(value, values[1][name]), name
        assert torch.equal(value, values[2][name]), name


def test_keys_tell_rows_apart():
    head = torch.zeros(60, 6)
    keep_all = torch.ones(60, dtype=torch.bool)
    assert RowSet.build(head, mask=None).key == RowSet.build(head, mask=keep_all).key
    assert RowSet.build(head, mask=MASK).key != RowSet.build(head, mask=None).key
    assert RowSet.build(head, mask=None).ids is None
    assert RowSet.build(head, mask=MASK).count == int(MASK.sum())
    with pytest.raises(ValueError, match="50 entries"):
        RowSet.build(head, mask=MASK[:50])
