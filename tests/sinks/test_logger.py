"""A logger gets plain numbers at rising steps, and whatever it does training goes on."""

import numpy as np
import pytest
from loops import COUNTS, TinyLM, batches, train

import trainhooks as th
from trainhooks.sinks import Record
from trainhooks.sinks.logger import STEP


def recorded(log, *, steps=4):
    model = TinyLM()
    with th.Recorder(model, counts=COUNTS, sinks=[th.LoggerSink(log)]) as recorder:
        losses = train(model, batches(steps), recorder)
    return losses, model


def test_it_gets_plain_numbers_at_rising_steps():
    calls = []
    recorded(lambda numbers, step: calls.append((step, numbers)))
    assert [step for step, _ in calls] == [0, 1, 2, 3, 4]
    assert all(numbers[STEP] == step for step, numbers in calls)
    for _, numbers in calls:
        assert all(type(number) in (int, float) and np.isfinite(number) for number in numbers.values())
        assert all(tag.startswith("trainhooks/") for tag in numbers)
        assert "trainhooks/loss" not in numbers
    assert "trainhooks/probe/heldout_spearman" in calls[-1][1]
    assert any(tag.startswith("trainhooks/convergence/") and tag.endswith("/whole") for tag in calls[-1][1])


def test_numbers_that_are_not_finite_are_left_out():
    calls = []
    sink = th.LoggerSink(lambda numbers, step: calls.append(numbers))
    sink.write(Record(1, {"a.b": np.array(np.inf), "a.c": np.array(np.nan), "a.d": np.array(1.0)}))
    assert calls == [{"trainhooks/a/d": 1.0, STEP: 1}]


def test_a_logger_that_raises_is_said_once_and_asked_again():
    steps = []

    def broken(numbers, step):
        steps.append(step)
        raise ConnectionError("no route")

    with pytest.warns(
        RuntimeWarning, match=r"step 0: the logger raised ConnectionError: no route\..*said once"
    ) as said:
        losses, model = recorded(broken)
    assert len(said) == 1
    assert steps == [0, 1, 2, 3, 4]
    bare = TinyLM()
    assert train(bare, batches(4)) == losses
    assert all((a == b).all() for a, b in zip(bare.parameters(), model.parameters(), strict=True))


def test_stopping_by_hand_is_no_error_of_the_logger():
    def stopped(numbers, step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        th.LoggerSink(stopped).write(Record(0, {}))


@pytest.mark.parametrize("given", [None, "wandb", {"log": print}])
def test_what_cannot_be_called_is_said_before_training(given):
    with pytest.raises(TypeError, match=r"such as trackio\.log"):
        th.LoggerSink(given)
