"""What results and the package show of themselves at a prompt."""

import ast
import dataclasses
import importlib
import inspect
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dlf_dynamics
from dlf_dynamics import analysis
from dlf_dynamics.analysis import bifurcation
from dlf_dynamics.analysis.instabilities.branches import Branches
from dlf_dynamics.analysis.spectra.eigenvalues import Eigenvalues
from dlf_dynamics.analysis.studies.study import Study
from dlf_dynamics.config import RunConfig, SpectrumConfig
from dlf_dynamics.datasets import Dataset
from dlf_dynamics.reprs import brief

ROOT = Path(__file__).parents[1]


def test_the_package_shows_its_public_names():
    assert set(dlf_dynamics.__all__) <= set(dir(dlf_dynamics))
    assert all(getattr(dlf_dynamics, name) is not None for name in dlf_dynamics.__all__)


def with_arrays(module):
    """Public classes of a module whose fields are said to be arrays."""
    for name in module.__all__:
        kind = getattr(module, name)
        if inspect.isclass(kind) and (dataclasses.is_dataclass(kind) or hasattr(kind, "_fields")):
            hints = inspect.get_annotations(kind).values()
            if any(word in str(hint) for hint in hints for word in ("Float[", "Complex[")):
                yield kind


@pytest.mark.parametrize("module", [analysis, bifurcation], ids=lambda m: m.__name__)
def test_public_results_show_themselves_in_brief(module):
    kinds = list(with_arrays(module))
    assert kinds
    assert {kind.__name__ for kind in kinds if kind.__repr__ is not brief} == set()


def test_results_of_runs_and_studies_do_so_too():
    for path in [*(ROOT / "analysis").rglob("*.py"), *(ROOT / "dlf_dynamics").glob("*.py")]:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and "__repr__ = brief" in ast.unparse(node):
                name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                prefix = "" if name.startswith("dlf_dynamics") else "dlf_dynamics."
                kind = getattr(importlib.import_module(prefix + name), node.name)
                assert kind.__repr__ is brief  # a dataclass leaves it as it is


class Sample(NamedTuple):
    name: str
    values: np.ndarray
    few: np.ndarray
    parts: list
    config: SpectrumConfig
    names: dict
    __repr__ = brief


def test_a_repr_tells_types_shapes_and_counts():
    sample = Sample(
        "a" * 500,
        np.zeros((2801, 3)),
        np.array([1.5, np.nan]),
        [Branches(*[np.zeros(9)] * 9)] * 7,
        SpectrumConfig(),
        {"loss": np.zeros(9), "accuracy": np.zeros(9)},
    )
    text = repr(sample)
    assert text.startswith("Sample(name='aaaa")
    assert max(map(len, text.splitlines())) <= 100
    for told in (
        "values=float64[2801, 3]",
        "few=[1.5, nan]",
        "parts=list of 7 Branches",
        "config=SpectrumConfig(...)",
        "names=dict of 'loss', 'accuracy'",
    ):
        assert told in text
    assert repr(sample._replace(parts=[], config=3)).count("parts=[],") == 1


def test_what_is_traced_shows_itself():
    shown = []

    @jax.jit
    def double(x):
        shown.append(repr(Eigenvalues(*[x] * 9)))
        return 2 * x

    double(np.ones(2))
    assert shown[0].count("=float64[2]") == 9
    assert repr(Branches(*[jnp.ones(2)] * 9)).count("=[1.0, 1.0]") == 9


def test_the_largest_things_are_shown_at_once():
    study = Study(RunConfig(), (("model.seed", tuple(range(100_000))),))
    dataset = Dataset(np.zeros((60_000, 28, 28, 1)), np.zeros(60_000, int))
    for thing in (study, dataset):
        assert len(repr(thing)) < 300
    assert repr(dataset) == (
        "Dataset(inputs=float64[60000, 28, 28, 1], labels=int64[60000], validation=None)"
    )
