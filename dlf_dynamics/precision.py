"""Other number types: rounding float32 vectors to fewer bits, and widening to float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree


def rounded(values: Float[Array, "*shape"], precision: str) -> Float[Array, "*shape"]:
    """The nearest numbers of a shorter type (ties to even), stored in the type of the values.

    XLA may leave out a conversion to a shorter type and back (`xla_allow_excess_precision`), but
    not `reduce_precision`.

    Args:
        values: float32 values.
        precision: `bfloat16` or `float16`.

    >>> rounded(jnp.array([1.003, 7e5], "float32"), "float16").tolist()
    [1.0029296875, inf]
    """
    kind = jnp.finfo(precision)
    nearest = jax.lax.reduce_precision(values, kind.nexp, kind.nmant)
    if precision != "float16":
        return nearest
    # XLA flushes subnormal numbers to 0; those of float16 are equally spaced.
    step = float(kind.smallest_subnormal)
    return jnp.where(
        jnp.abs(values) < float(kind.smallest_normal), jnp.round(values / step) * step, nearest
    )


def widened(tree: PyTree) -> PyTree:
    """The same pytree with float32 arrays converted to float64."""

    def wide(leaf: Any) -> Any:
        narrow = hasattr(leaf, "dtype") and leaf.dtype == jnp.float32
        return leaf.astype(jnp.float64) if narrow else leaf

    return jax.tree.map(wide, tree)


@dataclass(frozen=True)
class InPrecision:
    """A network that computes in a shorter type; its arguments and outputs stay float32.

    It compares by value, so that functions compiled for it serve all its problems.

    Attributes:
        apply: function of the network, `apply(params, inputs) -> outputs`.
        precision: `bfloat16` or `float16`.
    """

    apply: Callable[[PyTree, Array], Array]
    precision: str

    def __call__(self, params: PyTree, inputs: Array) -> Array:
        """The outputs."""
        params, inputs = jax.tree.map(lambda leaf: leaf.astype(self.precision), (params, inputs))
        return self.apply(params, inputs).astype(jnp.float32)
