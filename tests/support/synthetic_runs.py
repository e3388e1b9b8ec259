"""Small trajectories with known answers, shared by the tests of this folder."""

import numpy as np

from trainhooks.lead import ArrayTrajectory


def ramp(steps, middle):
    """A smooth rise from 0 at the first step to 1 at the last, steepest near `middle` in log(1 + step)."""
    rise = 1.0 / (1.0 + np.exp(-4.0 * (np.log1p(steps) - np.log1p(middle))))
    return (rise - rise[0]) / (rise[-1] - rise[0])


def planted_run(*, frequency_middle, rest_middle, seed=0, rows=400, dims=16, last=100):
    """A run whose change is y b' on one ramp and everything else on another; returns it with its targets."""
    rng = np.random.default_rng(seed)
    steps = np.arange(last + 1)
    left = np.linalg.qr(np.column_stack([np.ones(rows), rng.standard_normal((rows, 2))]))[0][:, 1:]
    right = np.linalg.qr(rng.standard_normal((dims, 2)))[0]
    final = left * [10.0, 6.0] @ right.T + 0.02 * rng.standard_normal((rows, dims))
    y = left @ [0.8, 0.6]
    part = np.outer(y, final.T @ y)
    moved = ramp(steps, frequency_middle)[:, None, None] * part
    moved = moved + ramp(steps, rest_middle)[:, None, None] * (final - part)
    start = 0.05 * rng.standard_normal((rows, dims))
    return ArrayTrajectory((start + moved).astype(np.float32), steps=steps), 9.0 + 2.0 * np.sqrt(rows) * y


def broad_run(*, frequency_middle=20, rest_middle=40, seed=0, rows=300, dims=24, last=100, leading=0.6):
    """As `planted_run`, with a change of `dims` directions over which the targets are spread, and noise in its course.

    `leading` is the targets' correlation with the main direction. Signs and rotations of what is spread give labellings
    of equal loadings, so that the lead can be told from theirs.
    """
    rng = np.random.default_rng(seed)
    steps = np.arange(last + 1)
    left = np.linalg.qr(np.column_stack([np.ones(rows), rng.standard_normal((rows, dims))]))[0][:, 1:]
    right = np.linalg.qr(rng.standard_normal((dims, dims)))[0]
    final = left * (10.0 / np.sqrt(1.0 + np.arange(dims))) @ right.T
    spread = rng.standard_normal(dims - 1)
    y = left @ np.r_[leading, np.sqrt(1.0 - leading**2) * spread / np.linalg.norm(spread)]
    part = np.outer(y, final.T @ y)
    moved = ramp(steps, frequency_middle)[:, None, None] * part
    moved = moved + ramp(steps, rest_middle)[:, None, None] * (final - part)
    course = np.sin(np.pi * np.linspace(0.0, 1.0, last + 1))[:, None, None]
    moved = moved + 0.02 * course * rng.standard_normal(moved.shape)
    return ArrayTrajectory(moved.astype(np.float32), steps=steps), 9.0 + 2.0 * np.sqrt(rows) * y


def straight_line(*, rows=120, dims=10, seed=0, steps=None):
    """A run that goes straight from a random start to a random end, on a curved clock."""
    rng = np.random.default_rng(seed)
    steps = np.arange(41) if steps is None else steps
    first, last = rng.standard_normal((2, rows, dims))
    progress = ((steps - steps[0]) / (steps[-1] - steps[0])) ** 0.7
    return ArrayTrajectory((first + progress[:, None, None] * (last - first)).astype(np.float32), steps=steps)
