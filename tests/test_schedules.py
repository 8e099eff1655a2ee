from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlf_dynamics.config import ScheduleConfig
from dlf_dynamics.schedules import Static, Tabulated, Triangle, make_schedule


def triangle_by_hand(step, num_classes, amplitude, period, pulse_steps):
    """The published formula in exact fractions."""
    tau = step % pulse_steps
    slope = Fraction(2 * (amplitude - 1), period)
    peak = 1 + slope * tau if 2 * tau < period else 2 * amplitude - 1 - slope * tau
    weights = [Fraction(1)] * num_classes
    weights[step // pulse_steps % num_classes] = peak
    return [float(num_classes * weight / sum(weights)) for weight in weights]


@pytest.mark.parametrize("counting", ["exact", "published"])
@pytest.mark.parametrize("num_classes", [2, 3, 10])
@pytest.mark.parametrize(("amplitude", "period"), [(70, 5000), (4, 4), (10, 7), (2, 1), (3, 2)])
def test_class_weights_follow_the_published_formula(counting, num_classes, amplitude, period):
    schedule = Triangle(num_classes, float(amplitude), period, counting)
    pulse = period + (counting == "published")
    steps = {
        k * pulse + tau
        for k in range(num_classes + 1)
        for tau in (0, 1, period // 4, period // 2 - 1, period // 2, period // 2 + 1, pulse - 1)
        if 0 <= tau < pulse
    }
    for step in sorted(steps):
        expected = triangle_by_hand(step, num_classes, amplitude, period, pulse)
        assert np.asarray(schedule(step)) == pytest.approx(expected, rel=1e-13)


def test_the_authors_counter_gives_the_published_counting():
    # Their program adds 1 after each update and resets when the counter exceeds the period.
    num_classes, amplitude, period = 3, 5.0, 6
    schedule = Triangle(num_classes, amplitude, period, "published")
    tau, emphasised = 0, 0
    for step in range(4 * (period + 1)):
        weights = np.ones(num_classes)
        rising = tau < period / 2
        slope = 2 * (amplitude - 1) / period
        weights[emphasised] = 1 + slope * tau if rising else 2 * amplitude - 1 - slope * tau
        np.testing.assert_allclose(
            schedule(step), num_classes * weights / weights.sum(), rtol=1e-14
        )
        tau += 1
        if tau > period:
            tau, emphasised = 0, (emphasised + 1) % num_classes


def test_the_headline_pulse_peaks_at_35_to_1():
    # 3 * 70 / 72 for the class that is emphasised, 3 / 72 for the others.
    weights = Triangle(3, 70.0, 5000)(2500)
    assert weights.tolist() == pytest.approx([210 / 72, 3 / 72, 3 / 72], rel=1e-14)


@pytest.mark.parametrize(("counting", "length"), [("exact", 10), ("published", 11)])
def test_a_pulse_lasts_as_its_counting_says(counting, length):
    schedule = Triangle(3, 4.0, 10, counting)
    assert schedule.pulse_steps == length
    for step in range(3 * length):
        # The published count spends one more step at rest, at its end.
        if step % length in (0, 10):
            assert schedule(step).tolist() == [1.0, 1.0, 1.0]
        else:
            assert np.flatnonzero(schedule(step) > 1).tolist() == [step // length]
        # The cycle through the classes repeats to the bit.
        assert np.array_equal(schedule(step), schedule(step + 3 * length))


@pytest.mark.parametrize("counting", ["exact", "published"])
def test_weights_sum_to_the_number_of_classes_and_stay_positive(counting):
    schedule = Triangle(7, 70.0, 13, counting)
    table = np.asarray(jax.vmap(schedule)(jnp.arange(500)))
    np.testing.assert_allclose(table.sum(axis=1), 7, rtol=1e-14)
    assert table.min() > 0


@pytest.mark.parametrize("step", [0, 1, 2500, 5000, 12_345])
def test_amplitude_1_is_the_static_loss(step):
    assert Triangle(3, 1.0, 5000)(step).tolist() == [1.0, 1.0, 1.0]
    assert Static(3)(step).tolist() == [1.0, 1.0, 1.0]


def test_oscillations_end_at_the_step_that_is_asked_for():
    schedule = Triangle(3, 70.0, 10, static_from=14)
    moving = Triangle(3, 70.0, 10)
    for step in range(14):
        assert np.array_equal(schedule(step), moving(step))
    for step in range(14, 40):
        assert schedule(step).tolist() == [1.0, 1.0, 1.0]
    assert moving(14).tolist() != [1.0, 1.0, 1.0]


def test_compiled_weights_are_those_of_eager_evaluation():
    schedule = Triangle(3, 70.0, 5000, "published", static_from=9000)
    compiled = jax.jit(schedule)
    for step in (0, 1, 2499, 2500, 4999, 5000, 5001, 8999, 9000):
        np.testing.assert_allclose(compiled(step), schedule(step), rtol=1e-15)


def test_a_table_is_read_row_by_row_and_kept_at_its_end():
    table = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    schedule = Tabulated(table)
    assert [schedule(step).tolist() for step in (0, 1, 2, 99)] == [
        [1.0, 2.0],
        [3.0, 4.0],
        [3.0, 4.0],
        [3.0, 4.0],
    ]


def test_the_configuration_chooses_the_schedule():
    config = ScheduleConfig(amplitude=7.0, period=9, counting="published", static_from=5)
    assert make_schedule(config, 4) == Triangle(4, 7.0, 9, "published", 5)
    assert make_schedule(ScheduleConfig(name="static"), 4) == Static(4)
