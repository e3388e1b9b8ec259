import itertools

import pytest

import trainhooks as th
from trainhooks.core.schedule import in_words


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
        (th.Thinned(3), [0, 1, 2, 3, 6]),
        (th.Thinned(3).within(th.EveryStep(), last=7), [0, 1, 2, 3, 6, 7]),
        (th.Thinned(3).within(th.Steps([1, 4, 5]), last=None), [1, 4]),
        (th.Thinned(3).within(th.Steps([1, 4, 5]), last=5), [1, 4, 5]),
        (th.Thinned(3).within(th.Steps([1, 4]), last=7), [1, 4]),
        (th.Thinned(1), list(range(8))),
    ],
)
def test_steps(schedule, expected):
    assert schedule.steps(7) == expected


@pytest.mark.parametrize(
    "schedule",
    [
        th.EveryStep(),
        th.Every(3),
        th.LogSpaced(),
        th.LogSpaced(until=5, every=7),
        th.LogSpaced(until=64, every=1),
        th.Steps([5, 2, 900]),
        th.Every(4) | th.Steps([1]),
        th.Thinned(),
        th.Thinned().within(th.EveryStep(), last=67),
        th.Thinned().within(th.Every(3), last=66),
        th.Thinned().within(th.Every(3), last=67),
        th.Thinned(7).within(th.LogSpaced(until=64, every=5), last=2500),
        th.Thinned().within(th.Every(4) | th.Steps([1]), last=60),
    ],
)
def test_counting_needs_no_list(schedule):
    assert all(schedule.count(last) == len(schedule.steps(last)) for last in (0, 1, 2, 5, 6, 7, 63, 64, 513, 2500))


def test_counting_looks_at_each_step_a_few_times():
    """Of any schedule, joined ones and those of users, which count step by step: the run's length, not its square."""
    looks = []

    class Odd(th.Schedule):
        def __call__(self, step):
            looks.append(step)
            return step % 2 == 1

    assert th.Thinned().within(Odd() | th.Steps([4]), last=2999).count(2999) == 306
    assert len(looks) <= 2 * 3000


def test_thinning_leaves_none_out_of_records_that_are_apart():
    for apart in (th.LogSpaced(), th.Every(10), th.Every(25), th.Steps([3, 13, 29])):
        assert th.Thinned().within(apart, last=None).steps(3000) == apart.steps(3000)


def test_schedules_say_in_words_when_they_fire():
    class Odd(th.Schedule):
        def __call__(self, step):
            return step % 2 == 1

    assert in_words(th.EveryStep() | th.EveryStep()) == "EveryStep()"
    assert in_words(th.Thinned().within(th.Every(2), last=7) | Odd()) == "Thinned(n=10) | Odd"
    assert len(in_words(th.Steps(range(1000)))) <= 120


def test_counting_takes_no_longer_for_a_long_run():
    assert th.LogSpaced().count(10**18) == 11 + 10**15
    for of, expected in ((th.EveryStep(), 10**17 + 10), (th.Every(3), 10**17 + 3), (th.Every(100), 10**16 + 1)):
        assert th.Thinned(10).within(of, last=None).count(10**18) == expected
    assert th.Thinned(10).within(th.LogSpaced(), last=None).count(10**18) == 11 + 10**15


@pytest.mark.parametrize("n", [1, 2, 3, 10, 64])
@pytest.mark.parametrize(
    "of", [th.EveryStep(), *map(th.Every, (1, 2, 3, 7, 10, 11, 40)), th.Steps([0, 5, 9, 10, 31, 33])]
)
def test_counting_blocks_is_what_looking_at_each_step_gives(of, n):
    for last in range(75):
        assert th.Thinned(n).within(of, last=None).count(last) == len(th.Thinned(n).within(of, last=None).steps(last))


@pytest.mark.parametrize("n", [1, 3, 10, 50])
@pytest.mark.parametrize("of", [th.LogSpaced(*two) for two in itertools.product((1, 8, 9, 40), (1, 3, 7, 20))], ids=str)
def test_counting_blocks_of_pythias_grid(of, n):
    for last in range(0, 130, 3):
        assert th.Thinned(n).within(of, last=None).count(last) == len(th.Thinned(n).within(of, last=None).steps(last))


@pytest.mark.parametrize(
    "make",
    [
        lambda: th.Every(0),
        lambda: th.Steps([]),
        lambda: th.Steps([-1]),
        lambda: th.Steps([True]),
        lambda: th.Thinned(0),
    ],
)
def test_what_cannot_fire_is_refused(make):
    with pytest.raises(ValueError, match=r"never fires|whole number"):
        make()
