import numpy as np
import pytest

from trainhooks.lead import Series, placement_of

STEPS = np.arange(101)
RATES = np.interp(STEPS, [0, 10, 60, 100], [0.0, 3e-4, 3e-4, 3e-5])


@pytest.mark.parametrize(
    ("step", "phase", "share"),
    [(5.0, "warm-up", 0.5), (10.0, "plateau", 1.0), (59.5, "plateau", 1.0), (80.0, "decay", 0.55)],
)
def test_places_a_step_in_the_schedule(step, phase, share):
    got = placement_of(step, learning_rate=Series(STEPS, RATES))
    assert (got.step, got.phase) == (step, phase)
    assert got.share_of_peak == pytest.approx(share)


def test_does_not_depend_on_the_rate_s_unit_and_skips_missing_records():
    holes = np.where(STEPS % 3 == 1, np.nan, RATES)
    assert placement_of(80.0, learning_rate=Series(STEPS, 7.0 * RATES)) == placement_of(
        80.0, learning_rate=Series(STEPS, RATES)
    )
    assert placement_of(80.0, learning_rate=Series(STEPS, holes)).share_of_peak == pytest.approx(0.55)


def test_a_constant_rate_is_a_plateau():
    assert placement_of(3.0, learning_rate=Series(STEPS, np.full(101, 0.1))).phase == "plateau"


def test_no_place_without_a_step_or_a_rate():
    assert placement_of(float("nan"), learning_rate=Series(STEPS, RATES)) is None
    assert placement_of(3.0, learning_rate=Series(STEPS, np.zeros(101))) is None
    assert placement_of(3.0, learning_rate=Series(STEPS, np.full(101, np.nan))) is None


def test_refuses_steps_out_of_order():
    with pytest.raises(ValueError, match="increase strictly"):
        placement_of(3.0, learning_rate=Series(np.array([8, 4, 0]), np.array([1.0, 0.5, 0.0])))
