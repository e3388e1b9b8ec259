"""States that stand in another order than they were made, and those that do not."""

import math

import pytest
import torch
from test_audit import KEY, LINEAR, Fake, audited, run

from trainhooks.checkpoints.audit.order import falls_back, restarts, turned


def kinds(audit):
    return {finding.kind for finding in audit.findings}


def walked(count, *, seed=0, size=40, start=0.0):
    """A run that drifts, with noise of its own at every step."""
    generator = torch.Generator().manual_seed(seed)
    first, drift = torch.randn(2, size, 6, generator=generator)
    noise = 0.02 * torch.randn(count, size, 6, generator=generator)
    return [first + (start + 0.2 * k) * drift + noise[k] for k in range(count)]


def series(states):
    return {1000 * (number + 1): state for number, state in enumerate(states)}


@pytest.mark.parametrize("late", [1, 2, 4])
def test_a_later_part_that_stands_first_is_seen(late):
    states = walked(12)
    audit = audited(series([*states[-late:], *states[:-late]]))
    (finding,) = (one for one in audit.findings if one.kind == "order")
    assert finding.steps == (1000 * late, 1000 * (late + 1))
    assert finding.doubtful
    assert "come before the others" in finding.message


def test_a_restart_in_the_middle_is_seen():
    first, second = walked(7), [state + 0.01 for state in walked(6)]
    audit = audited(series([*first, *second]))
    assert any(one.kind == "order" and one.steps == (7000, 8000) for one in audit.findings), audit.render()


def test_norms_that_jump_back_are_seen():
    generator = torch.Generator().manual_seed(1)
    turn = torch.linalg.qr(torch.randn(40, 40, generator=generator)).Q
    base = torch.randn(40, 6, generator=generator)
    grown = [base * (1 + 0.3 * k) for k in range(6)]
    other = [turn @ state for state in grown]
    assert falls_back([float(state.norm()) for state in [*grown, *other]]) == 5
    assert falls_back([1.0, 2, 3, 4, 5, 6, 7]) is None
    assert falls_back([7.0, 6, 5, 5.5, 4, 3, 2]) is None
    assert falls_back([1.0]) is None


@pytest.mark.parametrize("seed", range(4))
def test_runs_in_their_order_are_clean(seed):
    assert "order" not in kinds(audited(series(walked(12, seed=seed))))
    assert "order" not in kinds(audited(run(LINEAR, seed=seed)))
    generator = torch.Generator().manual_seed(seed)
    resting = torch.randn(40, 6, generator=generator) + 0.1 * torch.randn(12, 40, 6, generator=generator)
    assert "order" not in kinds(audited(series(resting)))
    circle = [torch.cat([math.cos(a) * resting[0], math.sin(a) * resting[0]]) for a in (0.0, 0.3, 0.6, 0.9, 1.2)]
    assert "order" not in kinds(audited({k + 1: Fake({KEY: state}) for k, state in enumerate(circle)}))


def test_the_bounds():
    assert turned([1, 1, 4, 1], first_to_last=1) == 2
    assert turned([1, 1, 1.2, 1], first_to_last=1) is None
    assert turned([5, 1], first_to_last=1) is None
    assert restarts([1, 1, 3], [0, 1, 2, 2]) == [3]
    assert restarts([1, 1, 2], [0, 1, 2, 2]) == []
