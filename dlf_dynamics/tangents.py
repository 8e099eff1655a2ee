"""neural-tangents 0.6.5 on current JAX: repairs its import, and computes empirical kernels with it.

The package is optional. 0.6.5 is its last release and imports names that JAX has since removed.
Checked on JAX 0.10.0, 0.10.1, 0.10.2 and 0.12.0: with these names, its `stax`, its analytic
kernels, `empirical_ntk_fn` with implementations 1 and 2 and `empirical_ntk_vp_fn` are correct.
Implementation 3 (structured derivatives) needs more of the old JAX and does not run.
"""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from types import ModuleType
from typing import TYPE_CHECKING, Any

from dlf_dynamics.errors import ConfigError, one_line

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    from dlf_dynamics.problem import Problem

_VERSION = "0.6.5"
"""The version that is known to work."""

INSTALL = f"pip install --no-deps neural-tangents=={_VERSION} frozendict"
"""Without `--no-deps` it would install TensorFlow, which only its part `experimental` uses."""

_CORE_NAMES = ("Jaxpr", "JaxprEqn", "Literal", "Primitive", "Var")


@functools.cache
def neural_tangents() -> ModuleType:
    """The package `neural_tangents`, without its part `experimental`.

    JAX is unchanged when this returns.

    Raises:
        ConfigError: when it is not installed, or does not import on this JAX.
    """  # noqa: DOC501
    try:
        with _as_it_was(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            package = importlib.import_module("neural_tangents")
            _mend(importlib.import_module("neural_tangents._src.empirical"))
    except ModuleNotFoundError as error:
        if error.name not in ("neural_tangents", "frozendict"):
            raise _refused(error) from error
        raise ConfigError(
            f"the package {error.name} is not installed; expected it for infinite_width and for "
            f"ntk_engine neural-tangents: {INSTALL}"
        ) from None
    except Exception as error:  # an unknown version may raise anything
        raise _refused(error) from error
    return package


def empirical_kernel(
    problem: Problem, params: Float[Array, " params"], *, trace_outputs: bool = True
) -> Float[Array, "size size"]:
    """The empirical NTK computed by neural-tangents, from its NTK-vector products.

    It is the matrix of `spectra.gram.gram_matrix` by another method: Novak, Sohl-Dickstein and
    Schoenholz, Fast finite width neural tangent kernel, ICML 2022, Sec. 3.

    Args:
        problem: problem as a function of flat parameters; outputs must not depend on the other
            examples.
        params: θ.
        trace_outputs: whether the kernel is averaged over the outputs, with one row per example;
            otherwise it has rows for the outputs of the first example, then of the second, and so
            on.

    Raises:
        ConfigError: when neural-tangents is not installed, or does not import on this JAX.
    """
    import jax.numpy as jnp

    def outputs(params: Array, inputs: Array) -> Array:
        return problem.predict(params, inputs).reshape(len(inputs), -1)

    package = neural_tangents()
    kernel = package.empirical_ntk_fn(
        outputs,
        trace_axes=(-1,) if trace_outputs else (),
        vmap_axes=0,
        implementation=package.NtkImplementation.NTK_VECTOR_PRODUCTS,
    )(problem.inputs, None, params)
    if trace_outputs:
        return kernel
    rows = kernel.shape[0] * kernel.shape[2]
    return jnp.swapaxes(kernel, 1, 2).reshape(rows, rows)


@contextmanager
def _as_it_was() -> Iterator[None]:
    """Adds removed names to JAX temporarily.

    They are not needed after the import: neural-tangents copies those of `jax.core` and `jax.util`
    into its own modules, and uses `zeros_like_p` only as a key of two tables, which no primitive of
    current JAX uses.
    """
    import jax.core
    from jax.extend import core
    from jax.interpreters import ad

    lent: list[tuple[Any, str, Any]] = [(jax.core, n, getattr(core, n)) for n in _CORE_NAMES]
    lent.append((ad, "zeros_like_p", core.Primitive("zeros_like")))
    lent = [(home, name, value) for home, name, value in lent if name not in vars(home)]
    modules = {
        "jax.util": _module("jax.util", safe_map=_safe_map, safe_zip=_safe_zip),
        "neural_tangents.experimental": _module("neural_tangents.experimental"),
    }
    modules = {name: module for name, module in modules.items() if name not in sys.modules}
    try:
        sys.modules.update(modules)
        for home, name, value in lent:
            setattr(home, name, value)
        yield
    finally:
        for name in modules:
            del sys.modules[name]
        for home, name, _ in lent:
            delattr(home, name)


def _mend(empirical: ModuleType) -> None:
    """Gives its empirical kernels a `jnp.size` that accepts shapes.

    JAX's own warns of shapes at each call, and will refuse them.
    """
    import jax.numpy as jnp
    import numpy as np

    setattr(empirical, "jnp", _module("jax.numpy", **vars(jnp) | {"size": np.size}))  # noqa: B010


def _module(name: str, **content: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(content)
    return module


def _safe_map(function: Any, *columns: Any) -> list[Any]:
    return [function(*row) for row in zip(*columns, strict=True)]


def _safe_zip(*columns: Any) -> list[tuple[Any, ...]]:
    return list(zip(*columns, strict=True))


def _refused(error: Exception) -> ConfigError:
    import jax

    version = metadata.version("neural-tangents")
    return ConfigError(
        f"neural-tangents {version} does not import on JAX {jax.__version__} ({one_line(error)}); "
        f"expected {_VERSION} on JAX 0.10: {INSTALL}"
    )
