from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np
import pytest
from jaxtyping import Float, Int

from dlf_dynamics.codec import decode, encode
from dlf_dynamics.hdf5 import ContentError


class Ends(NamedTuple):
    top: int
    bottom: int = 0


class Values(NamedTuple):
    eigenvalues: Float[np.ndarray, "checkpoints k"]
    status: Int[np.ndarray, "checkpoints k"]


@dataclass(frozen=True)
class Event:
    onset: int
    size: float
    seen: bool
    name: str


@dataclass(frozen=True)
class Curve:
    points: Float[np.ndarray, " points"]
    events: list[Event]
    label: str = ""


@dataclass(frozen=True)
class Choice:
    k: int = 1
    tol: float | None = None
    which: Literal["largest", "both"] = "largest"


@dataclass(frozen=True)
class Found:
    steps: Int[np.ndarray, " checkpoints"]
    inner: Values
    choice: Choice
    ends: Ends
    tol: float
    events: list[Event]
    curves: list[Curve]
    named: dict[str, Curve]
    maybe: Curve | None = None
    indices: tuple[int, ...] = field(default=())


EVENT = Event(3, np.nan, True, "ä")
CURVE = Curve(np.array([1.0, 2.0]), [EVENT, Event(4, 1.5, False, "")], "first")
FOUND = Found(
    steps=np.arange(2),
    inner=Values(np.ones((2, 3)), np.zeros((2, 3), int)),
    choice=Choice(k=3),
    ends=Ends(2, 1),
    tol=1e-3,
    events=[],
    curves=[CURVE] * 11,
    named={"z": CURVE, "a": replace(CURVE, points=np.zeros(0))},
    indices=(4, 2),
)


def test_a_record_comes_back_as_it_was():
    back = decode(Found, encode(FOUND))
    assert repr(back) == repr(FOUND)
    assert list(back.named) == ["z", "a"]
    assert isinstance(back.inner, Values)
    assert back.maybe is None
    with_curve = decode(Found, encode(replace(FOUND, maybe=CURVE)))
    assert with_curve.maybe is not None
    assert with_curve.maybe.events[1] == CURVE.events[1]


def test_arrays_lie_at_the_names_of_their_fields():
    arrays = encode(FOUND)
    assert arrays["inner/eigenvalues"] is FOUND.inner.eigenvalues
    np.testing.assert_array_equal(arrays["curves/10/events/onset"], [3, 4])
    assert arrays["curves/10/events/name"].tolist() == ["ä".encode(), b""]
    assert arrays["named/a/points"].shape == (0,)
    assert {name: arrays[f"events/{name}"].dtype.kind for name in ("onset", "size", "seen")} == {
        "onset": "i",
        "size": "f",
        "seen": "b",
    }
    assert not any(name.startswith("maybe") for name in arrays)
    assert decode(Found, arrays | {"steps": np.array([5, 6])}).steps.tolist() == [5, 6]


def test_a_field_that_is_kept_elsewhere_is_given():
    arrays = encode(FOUND, ("choice",))
    assert b"choice" not in arrays["settings"]
    assert decode(Found, arrays, given={"choice": Choice(5)}).choice == Choice(5)
    with pytest.raises(ContentError, match="missing 1 required positional argument: 'choice'"):
        decode(Found, arrays)


def test_a_fraction_in_a_column_of_whole_numbers_is_not_cut_off():
    with pytest.raises(TypeError, match="Cannot cast"):
        encode(replace(FOUND, events=[replace(EVENT, onset=2.5)]))


def without(name):
    return lambda arrays: {
        key: array
        for key, array in arrays.items()
        if key != name and not key.startswith(f"{name}/")
    }


def with_array(name, value):
    return lambda arrays: arrays | {name: value}


def with_text(old, new):
    return lambda arrays: arrays | {"settings": np.bytes_(arrays["settings"].replace(old, new))}


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (without("steps"), "steps is None; expected Int of \\(checkpoints\\)"),
        (without("inner"), "inner is missing"),
        (without("inner/status"), "status is None; expected Int of \\(2 k\\)"),
        (without("events/size"), "size is object of shape \\(\\); expected a column"),
        (without("curves/3"), "curves/3 is missing"),
        (with_array("steps", np.zeros(2)), "steps is float64 of shape \\(2,\\); expected Int"),
        (with_array("steps", np.arange(3)), "eigenvalues is float64 of shape \\(2, 3\\); exp"),
        (with_array("events/onset", np.zeros(2, int)), "the columns of Event are not of one len"),
        (with_array("events/onset", np.zeros(0)), "onset is float64 of shape \\(0,\\); expected"),
        (with_array("foreign", np.zeros(1)), "foreign is not of a field of Found"),
        (with_array("foreign/x", np.zeros(1)), "foreign/x is not of a field of Found"),
        (with_array("settings", np.zeros(1)), "settings is not a text"),
        (with_text(b'"k": 3', b'"k": "x"'), "k is 'x'; expected a whole number"),
        (with_text(b'"largest"', b'"all"'), "which is 'all'; choices: largest, both"),
        (with_text(b'"ends": {', b'"ends": {"more": 1, '), "more is not a field of Ends"),
        (with_text(b'"tol": 0.001', b'"tol": null'), "tol is None; expected a number"),
        (with_text(b'"curves": 11', b'"curves": 12'), "curves/11 is missing"),
        (with_text(b'"curves": 11', b'"curves": "x"'), "curves is 'x'; expected a whole number"),
        (with_text(b'"named": [', b'"named": [1, '), "named is 1; expected a string"),
        (with_text(b"{", b"["), "settings: Expecting"),
    ],
)
def test_what_is_not_of_the_record_is_refused(spoil, line):
    with pytest.raises(ContentError, match=line):
        decode(Found, spoil(encode(FOUND)))


@dataclass(frozen=True)
class Grown:
    points: Float[np.ndarray, " points"]
    events: list[Event] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)


def test_lists_that_older_files_do_not_hold_are_empty_and_those_they_hold_are_checked():
    points = np.array([1.0, 2.0])
    old = decode(Grown, {"points": points, "settings": b"{}"})
    assert (old.events, old.curves) == ([], [])
    whole = encode(Grown(points, [EVENT], [CURVE]))
    again = decode(Grown, whole)
    assert len(again.events) == len(again.curves) == 1
    del whole["events/onset"]
    with pytest.raises(ContentError, match="onset is "):
        decode(Grown, whole)
