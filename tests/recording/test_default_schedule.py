"""When the default metrics that need the Gram are computed, and that what they say does not depend on it."""

import inspect

import numpy as np
import pytest
import torch
from loops import COUNTS, TinyLM, batches, train

import trainhooks as th

UPDATES = 23
GRAM = [*range(11), 20]  # of records at every step


def run(path, *, updates=UPDATES, **settings):
    torch.manual_seed(0)
    model = TinyLM()
    with th.Recorder(model, store=path, **({"counts": COUNTS} | settings)) as recorder:
        train(model, batches(updates), recorder)
    return recorder, th.open_store(path)


def measured(store, name):
    values = np.asarray(store[name], dtype=np.float64).reshape(len(store.steps), -1)
    return store.steps[np.isfinite(values).any(axis=1)].tolist()


@pytest.fixture(scope="module")
def known_length(tmp_path_factory):
    return run(tmp_path_factory.mktemp("run") / "run.zarr", total_steps=UPDATES)


@pytest.fixture(scope="module")
def all_of_them(tmp_path_factory):
    metrics = th.default_metrics(COUNTS, costly=None)
    return run(tmp_path_factory.mktemp("all") / "run.zarr", total_steps=UPDATES, metrics=metrics, counts=COUNTS)


def test_the_first_ten_then_every_tenth_and_the_last(known_length, all_of_them):
    _, store = known_length
    assert measured(store, "spectrum.singular_values") == [*GRAM, UPDATES]
    assert measured(store, "geometry.row_norm") == [*GRAM, UPDATES]
    assert measured(store, "geometry.cka_to_previous") == [*GRAM, UPDATES][1:]
    assert measured(store, "probe.heldout_r2") == store.steps.tolist() == list(range(UPDATES + 1))
    assert measured(store, "convergence.norm") == store.steps.tolist()
    assert measured(all_of_them[1], "spectrum.singular_values") == list(range(UPDATES + 1))


def test_what_is_measured_is_the_same_whenever_it_is(known_length, all_of_them):
    _, thinned = known_length
    _, full = all_of_them
    for name in thinned.names:
        if name.startswith(("spectrum.", "geometry.", "probe.", "convergence.")):
            some, every = (np.asarray(store[name], dtype=np.float64) for store in (thinned, full))
            there = np.isin(thinned.steps, [*GRAM, UPDATES]) if name[:3] in ("spe", "geo") else slice(None)
            np.testing.assert_allclose(some[there], every[there], rtol=1e-6, atol=1e-9, err_msg=name)


def test_the_plan_and_the_store_say_so(known_length, all_of_them):
    recorder, store = known_length
    assert str(recorder.plan()).endswith("; Spectrum, HeadGeometry in 13 of them")
    assert store.attributes["schedules"] == {
        "records": "EveryStep()",
        "Spectrum": "Thinned(n=10)",
        "HeadGeometry": "Thinned(n=10)",
        "snapshots": "EveryStep()",
    }
    assert "of them" not in str(all_of_them[0].plan())
    assert str(th.Recorder(TinyLM(), counts=COUNTS).plan()).endswith("; Spectrum, HeadGeometry by Thinned(n=10)")


def test_no_record_is_made_for_them_and_of_sparse_ones_none_is_left_out(tmp_path):
    _, store = run(tmp_path / "log.zarr", schedule=th.LogSpaced(), snapshot_schedule=th.Steps([0, 7]))
    assert store.steps.tolist() == [0, 1, 2, 4, 7, 8, 16]
    assert measured(store, "spectrum.stable_rank") == [0, 1, 2, 4, 8, 16]


def test_a_run_that_goes_on_keeps_their_times(tmp_path, all_of_them):
    torch.manual_seed(0)
    model = TinyLM()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    data = batches(UPDATES)
    recorder = th.Recorder(model, store=tmp_path / "run.zarr", counts=COUNTS)
    train(model, data[:15], recorder, optimizer=optimizer)
    state = recorder.state_dict()
    recorder.close()
    again = th.Recorder(model, store=tmp_path / "run.zarr", counts=COUNTS, mode="resume", total_steps=UPDATES)
    again.load_state_dict(state)
    train(model, data[15:], again, optimizer=optimizer)
    again.close()
    store = th.open_store(tmp_path / "run.zarr")
    assert measured(store, "spectrum.stable_rank") == [*GRAM, UPDATES]
    np.testing.assert_allclose(
        store["geometry.cka_to_previous"][[20, 23]], all_of_them[1]["geometry.cka_to_previous"][[20, 23]], rtol=1e-6
    )


def test_records_without_metrics_are_no_fault(tmp_path):
    """A short run of a script whose metrics begin later; they ask for no record, so none is missing."""
    settings = {"schedule": th.Steps([1000]), "snapshot_schedule": th.Every(5), "total_steps": 7}
    recorder, store = run(tmp_path / "short.zarr", updates=7, **settings)
    assert store.steps.tolist() == [0, 5]
    assert str(recorder.plan()).endswith("; Spectrum, HeadGeometry in 0 of them")


def test_what_the_user_calls_schedules_stays(tmp_path):
    _, store = run(tmp_path / "own.zarr", updates=1, provenance={"schedules": ["mine"]})
    assert store.attributes["schedules"] == ["mine"]


class Sometimes(th.Schedule):
    """One of the user's own, of which nothing is known before its step."""

    def __call__(self, step):
        return step in (0, 3)


@pytest.mark.parametrize(
    ("when", "kept"),
    [(th.Every(3), [0, 2, 5]), (th.Steps([1, 2]), [0, 1]), (None, [*range(6)]), (Sometimes(), [*range(6)])],
)
def test_a_copy_is_kept_for_the_next_record_where_that_asks_for_it(tmp_path, when, kept):
    metrics = th.default_metrics(None, costly=when)
    settings = {"store": tmp_path / "run.zarr", "precision": "bfloat16", "total_steps": 6}
    recorder, held = th.Recorder(TinyLM(), metrics=metrics, **settings), []
    for step in range(6):
        recorder.begin_step()
        model = recorder.head.weight
        previous = recorder.state_dict()["references"].get("previous_head")
        if previous is not None:
            held.append(step)
            assert torch.equal(previous, model)
        recorder.before_update()
        with torch.no_grad():
            model.add_(1.0)
        recorder.after_update()
    assert held == kept
    recorder.close()


def test_what_a_budget_may_change_is_not_foreseen():
    metrics = th.default_metrics(None, costly=th.Every(3))
    recorder = th.Recorder(TinyLM(), metrics=metrics, budget=0.5)
    recorder.begin_step()
    recorder.before_update()
    recorder.after_update()
    assert "previous_head" in recorder.state_dict()["references"]
    recorder.close()


def test_a_number_is_no_schedule():
    with pytest.raises(ValueError, match=r"costly is 10; pass a schedule, such as th.Every\(10\)"):
        inspect.unwrap(th.default_metrics)(None, costly=10)  # without the tests' own checks of types
    metrics = th.default_metrics(None)
    metrics[0].schedule = 10
    with pytest.raises(ValueError, match="the schedule of Spectrum is 10; pass a schedule"):
        th.Recorder(TinyLM(), metrics=metrics)
