"""All tests compute in float64, on one thread; both are chosen before JAX computes anything."""

import os
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import jax
import pytest

# XLA reads both when it first computes; small problems run fastest on one thread.
os.environ.setdefault("NPROC", "1")
if version("jaxlib").startswith("0.10."):  # an XLA that does not know the flag ends the process
    # Four fifths of the tests' time was compilation, and half of that is spent in these emitters,
    # for programs that then run a tenth faster. `XLA_FLAGS=` on the command line tests with them.
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
jax.config.update("jax_enable_x64", True)


@pytest.fixture(scope="module")
def quick_compilation() -> Iterator[None]:
    """For tests that do not depend on how XLA optimises, here and in the programs they start.

    Programs of small networks take far longer to be compiled than to run.
    """
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, True)
    os.environ[name.upper()] = "1"
    yield
    del os.environ[name.upper()]
    jax.config.update(name, before)


@pytest.fixture(scope="session")
def require_schema() -> Callable[[Any, str], None]:
    """Holds what is printed as JSON against its schema: of an analysis, or `info` of a kind."""
    jsonschema = pytest.importorskip("jsonschema")

    def require(content: Any, name: str) -> None:
        from dlf_dynamics.analysis.infotypes import INFO
        from dlf_dynamics.analysis.pipeline import analysis_named
        from dlf_dynamics.jsontypes import document

        kind = INFO.get(name)
        schema = analysis_named(name).schema() if kind is None else document(kind, name)
        jsonschema.validate(content, schema)

    return require


@pytest.fixture(scope="module", autouse=True)
def forget_programs() -> Iterator[None]:
    """Frees the compiled programs of each file of tests.

    Thousands of them reach the number of memory mappings that Linux allows a process, and it dies.
    """
    yield
    jax.clear_caches()
