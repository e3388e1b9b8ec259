from __future__ import annotations

import gc
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from trainhooks.core.schedule import Every
from trainhooks.integrations.host import AFTER_FAILURE_SECONDS, HostedRecorder, HostLog
from trainhooks.integrations.trained_labels import causal_labels
from trainhooks.recording.recorder import WAIT_SECONDS
from trainhooks.sinks import MemorySink, Record


def test_causal_labels_drops_the_position_that_is_never_a_label():
    labels = torch.tensor([[7, 1, -100], [8, 2, 3]])
    assert torch.equal(causal_labels({"labels": labels}), torch.tensor([[1, -100], [2, 3]]))


def test_causal_labels_takes_labels_that_are_shifted_already():
    shifted = torch.tensor([[1, 2]])
    assert causal_labels({"labels": torch.tensor([[0, 1]]), "shift_labels": shifted}) is shifted


@pytest.mark.parametrize("batch", [{}, {"labels": None}, torch.zeros(2), (1, 2), None])
def test_causal_labels_of_other_batches_is_none(batch):
    assert causal_labels(batch) is None


def test_host_log_hands_over_in_order_and_once():
    log, seen = HostLog(), []
    for step in (0, 3):
        log.write(Record(step=step, values={"a.b": np.array(float(step)), "gone": np.array(np.nan)}))
    log.drain(lambda scalars, step: seen.append((scalars, step)))
    log.drain(lambda scalars, step: seen.append((scalars, step)))
    assert seen == [({"trainhooks/a/b": 0.0}, 0), ({"trainhooks/a/b": 3.0}, 3)]


def test_unknown_setting_is_refused_before_training():
    with pytest.raises(TypeError, match="snapshots"):
        HostedRecorder({"snapshots": 3}, labels=causal_labels)


def test_recorder_before_training_is_an_error():
    with pytest.raises(RuntimeError, match="when the trainer begins"):
        _ = HostedRecorder({}, labels=causal_labels).recorder


def test_missing_labels_are_said_once(build_tiny):
    hosted = HostedRecorder({"metrics": []}, labels=causal_labels)
    hosted.start(build_tiny(), step=0, total_steps=1, saved=None)
    with pytest.warns(RuntimeWarning, match=r"step 0: no labels in the batch \(\['input_ids'\]\)"):
        hosted.begin_step({"input_ids": torch.zeros(1, 2)})
    hosted.begin_step({"input_ids": torch.zeros(1, 2)})
    hosted.close()


def test_host_that_resumes_without_our_state_numbers_on(build_tiny):
    memory = MemorySink()
    hosted = HostedRecorder({"metrics": [], "sinks": [memory]}, labels=causal_labels)
    with pytest.warns(RuntimeWarning, match="resumes at step 4"):
        hosted.start(build_tiny(), step=4, total_steps=6, saved=None)
    hosted.begin_step({"labels": torch.zeros(1, 2, dtype=torch.int64)})
    hosted.recorder.after_update()
    hosted.close()
    assert [record.step for record in memory.records] == [5]


def test_total_steps_of_the_user_wins(build_tiny):
    hosted = HostedRecorder({"metrics": [], "total_steps": 9, "schedule": Every(3)}, labels=causal_labels)
    hosted.start(build_tiny(), step=0, total_steps=6, saved=None)
    assert hosted.recorder.plan().records == 4


def test_run_that_nobody_ends_is_closed_when_the_host_goes(build_tiny, spy):
    hosted = HostedRecorder({"metrics": []}, labels=causal_labels)
    hosted.start(build_tiny(), step=0, total_steps=None, saved=None)
    recorder = hosted.recorder
    recorder.begin_step()
    del hosted
    gc.collect()
    assert recorder.moments() == ["begin_step", "close"]


@pytest.mark.parametrize(("failed", "seconds"), [(False, WAIT_SECONDS), (True, AFTER_FAILURE_SECONDS)])
def test_after_a_failure_other_ranks_are_hardly_waited_for(failed, seconds, build_tiny, spy):
    hosted = HostedRecorder({"metrics": []}, labels=causal_labels)
    hosted.start(build_tiny(), step=0, total_steps=None, saved=None)
    hosted.close(failed=failed)
    assert hosted.recorder.of("close")[0].arguments == {"wait_seconds": seconds}


def test_lightnings_exception_is_a_failure(build_tiny, spy):
    lightning = pytest.importorskip("trainhooks.integrations.lightning")
    hooks = lightning.TrainHooks(metrics=[])
    hooks._host.start(build_tiny(), step=0, total_steps=None, saved=None)
    hooks.on_exception(SimpleNamespace(loggers=[]), None, KeyboardInterrupt())
    assert hooks.recorder.of("close")[0].arguments == {"wait_seconds": AFTER_FAILURE_SECONDS}


def test_a_state_that_cannot_be_given_is_no_empty_checkpoint(build_tiny, monkeypatch):
    lightning = pytest.importorskip("trainhooks.integrations.lightning")
    hooks = lightning.TrainHooks(metrics=[])
    assert hooks.state_dict() == {}, "before training"
    hooks._host.start(build_tiny(), step=0, total_steps=None, saved=None)

    def failed(*, wait):
        raise RuntimeError("device-side assert")

    monkeypatch.setattr(hooks.recorder._pipeline, "deliver", failed)
    with pytest.raises(RuntimeError, match="device-side assert"):
        hooks.state_dict()
