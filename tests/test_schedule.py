import pytest

import trainhooks as th


def test_log_spaced_is_pythias_grid():
    steps = th.LogSpaced().steps(143_000)
    assert steps[:12] == [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000]
    assert len(steps) == 154
    assert steps[-1] == 143_000


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (th.EveryStep(), list(range(8))),
        (th.Every(3), [0, 3, 6]),
        (th.Steps([5, 2]), [2, 5]),
        (th.Every(4) | th.Steps([1]), [0, 1, 4]),
        (th.Every(4) | th.Steps([1]) | th.Steps([7]), [0, 1, 4, 7]),
    ],
)
def test_steps(schedule, expected):
    assert schedule.steps(7) == expected


@pytest.mark.parametrize(
    "make", [lambda: th.Every(0), lambda: th.Steps([]), lambda: th.Steps([-1]), lambda: th.Steps([True])]
)
def test_what_cannot_fire_is_refused(make):
    with pytest.raises(ValueError, match=r"never fires|whole number"):
        make()
