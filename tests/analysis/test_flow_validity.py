"""The rule of validity on looks that are made up, each wrong in one number."""

from dataclasses import replace

import numpy as np
import pytest

from dlf_dynamics.analysis.flow.validity import (
    FIRST_STEPS,
    LARGEST_CHANGE,
    LARGEST_GROWTH,
    LARGEST_REST,
    LEAST_GROWTH,
    REASONS,
    Look,
    Steps,
    judged,
    reason_of,
)
from dlf_dynamics.codec import decode_table, encode_table

NAN = float("nan")

# On a settled orbit of gradient descent with step 1, the sharpness a little below the threshold.
SETTLED = Look(
    step=1000,
    threshold=2.0,
    sharpness=1.95,
    sharpness_low=1.95,
    sharpness_high=1.95,
    modes=1,
    gap=0.3,
    silent=1.2,
    oscillating=True,
    secant=2.0,
    growth=1e-3,
    change=2e-3,
    response=0.1,
    odd=0.02,
    even=0.03,
    rest=0.02,
    period=2,
    gate_flips=0.0,
)
# Below the edge nothing oscillates, and what the deviation would do does not matter.
QUIET = replace(
    SETTLED,
    sharpness=1.0,
    sharpness_low=1.0,
    sharpness_high=1.0,
    modes=0,
    gap=NAN,
    oscillating=False,
    period=0,
    growth=-0.5,
    change=1.9,
    response=0.0,
    swing=0.3,
)


@pytest.mark.parametrize("look", [SETTLED, QUIET])
def test_a_settled_orbit_and_a_quiet_step_are_valid(look):
    assert reason_of(look, 0) == ""


@pytest.mark.parametrize(
    ("reason", "changed"),
    [
        ("first steps", {"step": FIRST_STEPS - 1}),
        ("not finite", {"sharpness": NAN}),
        ("not finite", {"change": NAN}),
        ("not small", {"odd": NAN}),
        ("not finite", {"growth": np.inf}),
        ("period", {"period": 4}),
        ("period", {"period": -1}),
        ("kinks", {"gate_flips": 1e-5}),
        ("kinks", {"gate_flips": NAN}),
        ("lag", {"silent": 2.001}),
        ("lag", {"sharpness_low": 2.1}),
        ("lag", {"oscillating": False, "sharpness_low": 2.0001}),
        ("not settled", {"change": LARGEST_CHANGE * 1.01}),
        ("not settled", {"growth": LARGEST_GROWTH * 0.1 * 1.01}),
        ("not settled", {"growth": -LARGEST_GROWTH * 0.1 * 1.01}),
        ("not settled", {"swing": LARGEST_GROWTH * 0.1 * 1.01}),
        ("not settled", {"response": 0.0}),
        ("not settled", {"response": 100.0, "growth": LARGEST_CHANGE * 1.01}),
        ("not small", {"odd": LARGEST_REST * 1.01}),
        ("not small", {"even": LARGEST_REST * 1.01}),
        ("not small", {"oscillating": False, "rest": LARGEST_REST * 1.01}),
        ("unresolved", {"gap": 0.0}),
    ],
)
def test_each_number_decides_alone(reason, changed):
    assert reason_of(replace(SETTLED, **changed), 0) == reason


@pytest.mark.parametrize(
    "changed",
    [
        {"step": FIRST_STEPS},
        {"period": 0},
        {"silent": 2.0},
        {"silent": NAN},
        {"sharpness_low": 2.08},  # the oscillation itself explains 4.5 %
        {"oscillating": False, "sharpness_low": 2.0},
        {"change": LARGEST_CHANGE * 0.99},
        {"growth": LARGEST_GROWTH * 0.1 * 0.99, "swing": LARGEST_GROWTH * 0.1 * 0.99},
        {"response": 0.0, "growth": LEAST_GROWTH * 0.99, "swing": LEAST_GROWTH * 0.99},
        {"odd": LARGEST_REST * 0.99, "even": LARGEST_REST * 0.99},
        {"oscillating": False, "odd": 1.0, "even": np.inf},
        {"rest": 1.0},
        {"gap": NAN},
        {"gap": 1e-9},
    ],
)
def test_up_to_its_threshold_a_number_decides_nothing(changed):
    assert reason_of(replace(SETTLED, **changed), 0) == ""


def test_the_first_reason_that_applies_is_told():
    worst = {
        "unresolved": {"gap": 0.0},
        "not small": {"even": 1.0},
        "not settled": {"change": 1.0},
        "lag": {"silent": 3.0},
        "kinks": {"gate_flips": 0.1},
        "period": {"period": 8},
        "not finite": {"sharpness": NAN},
        "first steps": {"step": 3},
    }
    assert tuple(reversed(worst)) == REASONS
    look = SETTLED
    for reason, changed in worst.items():
        look = replace(look, **changed)
        assert reason_of(look, 0) == reason


def test_the_first_step_of_a_run_may_be_a_late_one():
    assert reason_of(SETTLED, 900) == "first steps"
    assert reason_of(SETTLED, 1000 - FIRST_STEPS) == ""


def between(count, **changed):
    """The steps 1000 to 1000 + `count` - 1, settled but for some of them."""
    columns = {
        "steps": 1000 + np.arange(count),
        "energy": np.full(count, 0.1),
        "period": np.full(count, 2),
        "gate_flips": np.zeros(count),
        "rounding": np.zeros(count),
    }
    for name, (row, value) in changed.items():
        columns[name][row] = value
    return Steps(**columns)


def verdicts(steps, every=10, **changed):
    looks = [replace(SETTLED, step=int(t), **changed) for t in steps.steps[::every]]
    return {look.step: look for look in judged(looks, steps, 0)}


def test_what_happens_between_two_looks_counts_at_both():
    for name, value, reason in (
        ("period", 4, "period"),
        ("period", -1, "period"),
        ("gate_flips", 0.01, "kinks"),
        ("gate_flips", NAN, "kinks"),
    ):
        found = verdicts(between(51, **{name: (23, value)}))
        assert {step for step, look in found.items() if look.reason} == {1020, 1030}
        assert {look.reason for look in found.values() if look.reason} == {reason}
    assert verdicts(between(51, period=(23, 8)))[1020].period == 8
    assert verdicts(between(51, period=(23, -1)))[1030].period == -1
    assert verdicts(between(51, gate_flips=(23, 0.25)))[1030].gate_flips == 0.25


def test_growth_is_looked_at_as_far_as_the_oscillation_takes_to_act_back():
    steps = between(201)
    grown = steps.energy * np.where(np.arange(201) < 100, 1.0, np.exp(4 * 0.02))
    found = verdicts(steps._replace(energy=grown), response=0.1)
    late = {step for step, look in found.items() if look.reason == "not settled"}
    assert late == {1090, 1100, 1110}
    assert found[1100].swing == pytest.approx(0.02)
    # Slower oscillations need longer: 1 / response steps on either side.
    found = verdicts(steps._replace(energy=grown), response=0.025)
    late = {step for step, look in found.items() if look.reason == "not settled"}
    assert late == set(range(1060, 1150, 10))


def test_an_oscillation_that_a_quick_change_leaves_behind_is_not_settled():
    # The loss changes sharpness with a period of 20 steps, ten times as fast as the oscillation
    # acts back. This grows by 0.3 % a step, 0.08 of the response; held at once, it would be larger
    # or smaller by 0.003 · 0.31 / 0.04², 60 %.
    rate, response = 2 * np.pi / 20, 0.04
    wave = 0.003 / rate * np.sin(rate * np.arange(301))
    steps = between(301)._replace(energy=1e-4 * np.exp(2 * wave))
    found = verdicts(steps, growth=0.003, change=0.003, response=response)
    assert {look.reason for look in found.values()} == {"not settled"}
    for look in found.values():
        assert look.bend == pytest.approx(0.003 * rate, rel=0.1)
    # Rounding of that size bends it, too; and a slow change is followed.
    noisy = steps._replace(rounding=np.full(301, 0.003 * rate))
    found = verdicts(noisy, growth=0.003, change=0.003, response=response)
    assert {look.reason for look in found.values()} == {""}
    slow = steps._replace(energy=1e-4 * np.exp(2 * 20 * 0.003 * np.sin(np.arange(301) / 20)))
    found = verdicts(slow, growth=0.003, change=0.003, response=response)
    assert {look.reason for look in found.values()} == {""}


def test_an_amplitude_that_doubles_in_a_few_hundred_steps_is_not_settled():
    # 0.2 % a step: far below the change that counts by itself, but the response takes longer.
    t = np.arange(301)
    steps = between(301)._replace(energy=1e-4 * np.exp(2 * 0.002 * t))
    found = verdicts(steps, growth=0.002, change=0.002, response=0.015)
    assert {look.reason for look in found.values()} == {"not settled"}
    found = verdicts(steps, growth=0.002, change=0.002, response=0.025)
    assert {look.reason for look in found.values()} == {""}


def test_looks_are_a_table_in_a_file():
    looks = [replace(SETTLED, reason="lag"), QUIET]
    found = decode_table(Look, encode_table(Look, looks))
    assert found[0] == looks[0]
    assert found[1].step == QUIET.step
    assert np.isnan(found[1].gap)
