"""The budget: what is thinned, when, and that it is recorded; clocks are counted by hand."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from loops import VOCAB, TinyLM, batches, train

import trainhooks as th
from trainhooks.core.variable import Variable
from trainhooks.metrics.base import Metric
from trainhooks.recording.budget import REVIEW_STEPS, Budget, BudgetController
from trainhooks.recording.timing import Cost, DeviceTimer, Stopwatch


class Slow(Metric):
    """Takes a while, and says how often it was asked."""

    def __init__(self, name: str = "slow.calls", *, seconds: float = 0.002) -> None:
        self.variables = (Variable(name),)
        self.seconds, self.steps = seconds, []

    def compute(self, state):
        self.steps.append(state.step)
        time.sleep(self.seconds)
        return {self.variables[0].name: float(len(self.steps))}


def spend(controller: BudgetController, part: int, *, step: int, seconds: float) -> None:
    with controller.taking(part, step):
        pass
    controller._seconds[part] += seconds


def test_the_dearest_metric_is_thinned_and_only_while_over_budget():
    controller = BudgetController(Budget(0.1), parts=["cheap", "dear", "snapshots"])
    assert controller.over_budget_part(Cost(0, 0.0, 0.0)) is None, "the first look only begins"
    for step in range(1, 11):
        spend(controller, 0, step=step, seconds=0.1)
        spend(controller, 1, step=step, seconds=1.0)
    assert controller.over_budget_part(Cost(10, 11.0, 31.0)) == 1
    controller.back_off(1)
    assert controller.spacing == [0, 2, 0]
    assert not controller.allows(1, 11)
    assert controller.allows(1, 12)
    assert controller.allows(1, 10), "the step under way may be asked about again"
    # what came since costs 1 of 20 seconds: within the budget
    assert controller.over_budget_part(Cost(20, 12.0, 52.0)) is None


def test_a_spacing_doubles_from_what_the_schedule_made_it():
    controller = BudgetController(Budget(0.1), parts=["metric", "snapshots"])
    for step in (0, 8, 16):
        spend(controller, 0, step=step, seconds=1.0)
    controller.back_off(0)
    assert controller.spacing[0] == 16
    controller.back_off(0)
    assert controller.spacing[0] == 32


@pytest.mark.parametrize(("allowed", "part"), [(False, None), (True, 1)])
def test_snapshots_are_thinned_last_and_only_if_allowed(allowed, part):
    controller = BudgetController(Budget(0.1, thin_snapshots=allowed), parts=["metric", "snapshots"])
    controller.over_budget_part(Cost(0, 0.0, 0.0))
    spend(controller, 0, step=1, seconds=0.01)
    spend(controller, 1, step=1, seconds=0.0)
    assert controller.over_budget_part(Cost(1, 10.0, 20.0)) == part


def test_spacings_survive_a_restart_and_belong_to_their_parts():
    controller = BudgetController(Budget(0.1), parts=["metric", "snapshots"])
    spend(controller, 0, step=6, seconds=1.0)
    controller.back_off(0)
    again = BudgetController(Budget(0.1), parts=["metric", "snapshots"])
    again.load_state_dict(controller.state_dict())
    assert (
        [again.allows(0, step) for step in (7, 8)] == [controller.allows(0, step) for step in (7, 8)] == [False, True]
    )
    with pytest.raises(ValueError, match="2 parts; here are snapshots"):
        BudgetController(Budget(0.1), parts=["snapshots"]).load_state_dict(controller.state_dict())


@pytest.mark.parametrize("share", [0, -0.1, float("nan"), True])
def test_a_budget_is_a_share_above_zero(share):
    with pytest.raises(ValueError, match=r"such as 0\.02"):
        Budget(share)


def test_a_recorder_over_budget_thins_its_metrics_and_says_so_in_the_store(tmp_path):
    metric, steps = Slow(), 4 * REVIEW_STEPS
    data = batches(steps)
    bare = train(TinyLM(), data)
    recorder = th.Recorder(TinyLM(), store=tmp_path / "run.zarr", metrics=[metric], budget=0.001)
    with recorder:
        assert train(recorder._model, data, recorder) == bare
    store = th.open_store(tmp_path / "run.zarr")
    spacing = store["recorder.spacing"]
    assert spacing[: 2 * REVIEW_STEPS + 1].max() == 0
    assert spacing[2 * REVIEW_STEPS + 1, 0] == 2
    assert spacing[-1, 0] == 4
    assert spacing[:, 1].max() == 0
    assert len(store.snapshots) == steps + 1
    computed = np.flatnonzero(np.isfinite(store["slow.calls"]))
    assert computed.tolist() == metric.steps
    assert np.diff(computed[computed > 2 * REVIEW_STEPS + 1]).min() >= 2
    assert np.isfinite(store["recorder.share"][2:]).all()


def test_without_a_budget_nothing_is_thinned_and_nothing_declared(tmp_path):
    metric = Slow(seconds=0.0)
    with th.Recorder(TinyLM(), store=tmp_path / "run.zarr", metrics=[metric]) as recorder:
        train(recorder._model, batches(REVIEW_STEPS + 5), recorder)
    assert metric.steps == list(range(REVIEW_STEPS + 6))
    assert not [name for name in th.open_store(tmp_path / "run.zarr").metrics().data_vars if name == "recorder.spacing"]


def test_thinned_snapshots_are_fewer(tmp_path):
    data = batches(3 * REVIEW_STEPS)
    budget = Budget(1e-6, thin_snapshots=True)
    counts = torch.ones(VOCAB, dtype=torch.int64).numpy()
    with th.Recorder(TinyLM(), store=tmp_path / "run.zarr", counts=counts, metrics=[], budget=budget) as recorder:
        train(recorder._model, data, recorder)
    expected = [*range(2 * REVIEW_STEPS + 1), *range(2 * REVIEW_STEPS + 2, 3 * REVIEW_STEPS + 1, 2)]
    assert th.open_store(tmp_path / "run.zarr").snapshots.steps.tolist() == expected


class Device:
    """A device that is told how far it has come; it hands out marks of its own time."""

    def __init__(self) -> None:
        self.given, self.come = 0.0, 0.0

    def mark(self):
        return DeviceMark(self, self.given)


class DeviceMark:
    """A point in the device's work."""

    def __init__(self, device: Device, at: float) -> None:
        self.device, self.at = device, at

    def query(self):
        return self.device.come >= self.at

    def elapsed_time(self, later):
        assert self.query()
        assert later.query(), "asking for what has not happened yet would wait"
        return 1000 * (later.at - self.at)


def test_a_devices_time_is_added_up_once_it_has_come_by():
    device = Device()
    watch = Stopwatch()
    watch.set_device_timer(DeviceTimer(device.mark))
    for seconds in (1.0, 2.0):
        with watch:
            device.given += seconds
        device.given += 10.0  # the loop's own
    assert watch.cost.device_seconds == 0
    device.come = 5.0
    assert watch.cost.device_seconds == 1.0
    device.come = 13.0
    assert watch.cost.device_seconds == 3.0
    watch.set_device_timer(None)
    with watch:
        device.given += 1.0
    assert watch.cost.device_seconds == 3.0, "what was measured stays, and the host has no device"


def test_what_a_metric_does_on_the_host_later_counts_as_its_own():
    class Later(Slow):
        def conclude(self, values):
            time.sleep(self.seconds)
            return values

    recorder = th.Recorder(TinyLM(), metrics=[Slow("a.calls", seconds=0.0), Later("b.calls")], budget=0.1)
    controller = recorder._metric_runner._controller
    recorder._metric_runner.conclude({})
    assert controller._seconds[1] >= 0.002
    assert controller._last == [None, None, None], "it is no other time of it"


def test_marks_do_not_pile_up_where_nobody_asks():
    device = Device()
    clock = DeviceTimer(device.mark)
    for step in range(100):
        with clock:
            device.given += 1.0
        device.come = step  # one step behind
    assert len(clock._pairs) <= 2
    device.come = 100.0
    assert clock.seconds == 100.0


def test_the_clock_changes_between_two_moments():
    first, second = Device(), Device()
    watch = Stopwatch()
    watch.set_device_timer(DeviceTimer(first.mark))
    with watch:
        watch.set_device_timer(DeviceTimer(second.mark))
        first.given += 1.0
    first.come = second.come = 100.0
    with watch:
        second.given += 2.0
    assert watch.cost.device_seconds == 3.0


def test_the_larger_share_counts():
    assert Cost(1, 1.0, 11.0).fraction == pytest.approx(0.1)
    assert Cost(1, 1.0, 11.0, 3.0).fraction == pytest.approx(3 / 8)
    assert Cost(4, 1.0, 11.0, 2.0).device_milliseconds_per_step == 500
    assert Cost(4, 3.0, 11.0, 2.0).since(Cost(1, 1.0, 2.0, 0.5)) == Cost(3, 2.0, 9.0, 1.5)
    controller = BudgetController(Budget(0.1), parts=["metric", "snapshots"])
    controller.over_budget_part(Cost(0, 0.0, 0.0))
    spend(controller, 0, step=1, seconds=0.05)
    assert controller.over_budget_part(Cost(1, 0.06, 21.0, 5.0)) == 0, "the device is over budget, not the thread"
