"""How many updates go into one call, by a clock that the test holds."""

from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from dlf_dynamics import pace
from dlf_dynamics.config import RunConfig


@pytest.fixture
def calls(monkeypatch):
    """Updates of each of some calls that take `own` seconds, and `each` for every update."""

    def calls(own, each, number=40):
        clock = SimpleNamespace(now=0.0)
        monkeypatch.setattr(pace.time, "monotonic", lambda: clock.now)
        config = RunConfig(steps=10**6, checkpoint_every=1000)
        held, step, made = pace.Pace(config, jnp.zeros(3)), 0, []
        for _ in range(number):
            made.append(int(held.counts(step).sum()))
            step += made[-1]
            clock.now += own + each * made[-1]
            held.update(step)
        return made

    return calls


def test_fast_updates_fill_a_quarter_of_a_second(calls):
    assert calls(0.0, 0.01)[-1] in (24, 25)


def test_slow_updates_are_made_one_by_one(calls):
    assert calls(0.0, 3.0)[-1] == 1


def test_where_calls_themselves_take_long_half_of_the_time_goes_into_updates(calls):
    made = calls(0.6, 0.01)[-1]
    assert 0.8 < 0.01 * made / 0.6 < 1.3


def test_no_call_takes_longer_than_two_seconds_for_that(calls):
    assert 0.9 + 0.01 * calls(0.9, 0.01)[-1] <= 2.0
    assert calls(5.0, 0.01)[-1] == 1
