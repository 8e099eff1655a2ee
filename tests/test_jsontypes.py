"""JSON schemas: of which types they are made, and that they refuse what is not so."""

from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import pytest

from dlf_dynamics.analysis.infotypes import INFO
from dlf_dynamics.analysis.pipeline import analysis_named
from dlf_dynamics.jsontypes import document, finite, schema_of
from dlf_dynamics.registry import ANALYSES

jsonschema = pytest.importorskip("jsonschema")


@dataclass
class Inner:
    """A part.

    Attributes:
        number: of something.
    """

    number: float
    name: str | None


class Whole(TypedDict):
    kind: Literal["a", "b"]
    parts: list[Inner]
    counts: dict[str, int]
    pair: tuple[int, ...]
    flag: bool
    anything: Any


GOOD = {
    "kind": "a",
    "parts": [{"number": 1.5, "name": None}, {"number": None, "name": "x"}],
    "counts": {"x": 3},
    "pair": [1, 2],
    "flag": True,
    "anything": [{}],
}


def valid(value):
    return jsonschema.Draft202012Validator(schema_of(Whole)).is_valid(value)


def test_what_is_of_the_type_is_valid():
    assert valid(GOOD)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "c"},
        {"parts": [{"number": 1.5}]},
        {"parts": [{"number": "1.5", "name": None}]},
        {"parts": [{"number": 1, "name": "x", "more": 1}]},
        {"counts": {"x": 1.5}},
        {"pair": [1, "2"]},
        {"flag": 1},
        {"more": 0},
    ],
)
def test_what_is_of_another_type_is_not(change):
    assert not valid(GOOD | change)


def test_a_key_that_is_missing_is_found():
    assert not valid({name: value for name, value in GOOD.items() if name != "flag"})


def test_descriptions_come_from_docstrings():
    assert schema_of(Inner)["properties"]["number"]["description"] == "of something."


def test_a_type_without_a_schema_is_named():
    with pytest.raises(TypeError, match=r"complex.* has no JSON schema"):
        schema_of(complex)


def test_numbers_that_are_not_finite_become_null():
    nan = float("nan")
    assert finite({"a": [nan, 1.0, float("inf")], "b": (2, "x")}) == {
        "a": [None, 1.0, None],
        "b": [2, "x"],
    }


@pytest.mark.parametrize("name", ANALYSES)
def test_each_key_of_an_analysis_has_its_type_and_its_meaning(name):
    schema = analysis_named(name).schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert all("description" in told for told in schema["properties"].values())


@pytest.mark.parametrize("name", INFO)
def test_each_key_of_info_has_its_type_and_its_meaning(name):
    schema = document(INFO[name], name)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert all("description" in told for told in schema["properties"].values())
