"""What a progress bar says of long eigenvalue solves."""

import itertools

import pytest

from dlf_dynamics.progress import ProductMeter, bar


def meter(solves, most, seconds):
    """With a clock that goes on by as many seconds at each look."""
    return ProductMeter(solves, most, clock=itertools.count(0, seconds).__next__)


def test_solves_of_less_than_two_seconds_are_not_worth_a_word():
    quick = meter(1000, 200, 0.1)
    assert {quick(made) for _ in range(200) for made in range(10)} == {""}


def test_the_first_solve_takes_at_most_what_is_allowed():
    long = meter(4, 100, 1)
    assert [long(made) for made in (0, 10, 20)] == [
        "",
        "",
        # 10 products a second; 80 of this solve and 3 solves of 100.
        ", 10 products/s, at most 0:00:38 left",
    ]


def test_later_solves_take_about_as_many_products_as_those_before():
    long = meter(3, 100, 5)
    said = [long(made) for made in (0, 20, 0, 10, 30)]
    assert said[1] == ", 4 products/s, at most 0:01:10 left"
    assert said[2] == ", 2 products/s, about 0:00:20 left"  # two solves of 20
    assert said[3] == ", 2 products/s, about 0:00:15 left"
    assert said[4] == ", 2.5 products/s, about 0:00:08 left"  # more than usual: no time less than 0


def test_what_a_resumed_solve_did_before_is_not_part_of_its_pace():
    long = meter(1, 100, 4)
    assert [long(50), long(60)] == ["", ", 2.5 products/s, at most 0:00:16 left"]


def test_how_many_are_left_can_be_said_again():
    long = meter(1000, 100, 5)
    for made in (0, 20):
        long(made)
    fresh = meter(1000, 100, 5)
    fresh.expect(1)
    assert [fresh(0), fresh(20)][1] == ", 4 products/s, at most 0:00:20 left"
    long.expect(2)
    assert long(0) == ", 2 products/s, about 0:00:20 left"


@pytest.mark.parametrize("quiet", [True, False])
def test_a_bar_takes_notes_where_nothing_is_drawn(quiet, capsys):
    with bar("work", 3, quiet=quiet) as advance:
        advance(1)
        advance.note(", 3 products/s")
    assert capsys.readouterr() == ("", "")
