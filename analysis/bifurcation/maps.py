"""`Map`: a discrete dynamical system with one parameter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
from jax.tree_util import Partial
from jaxtyping import Array, Float

Vector = Float[Array, " n"]
Parameter = Float[Array, ""] | float


@partial(jax.tree_util.register_dataclass, data_fields=["step"], meta_fields=[])
@dataclass(frozen=True)
class Map:
    """x ↦ step(x, p), with a state in R^n and a real parameter.

    It is a pytree, to be passed to compiled functions as an argument. A `step` that holds large
    arrays should be a `jax.tree_util.Partial` of them, so that they are not compiled in.

    Attributes:
        step: `step(state, parameter) -> state` on vectors of shape (n,), which JAX can trace.

    >>> import jax.numpy as jnp
    >>> logistic = Map(lambda x, r: r * x * (1 - x))
    >>> logistic(jnp.array([0.5]), 3.2).tolist()
    [0.8]
    """

    step: Callable[[Vector, Parameter], Vector]

    def __post_init__(self) -> None:
        if callable(self.step) and not isinstance(self.step, Partial):
            object.__setattr__(self, "step", Partial(self.step))

    def __call__(self, state: Vector, parameter: Parameter) -> Vector:
        """The next state."""
        return self.step(state, parameter)

    def iterate(self, state: Vector, parameter: Parameter, count: int) -> Vector:
        """The state after so many steps."""
        return jax.lax.fori_loop(0, count, lambda _, x: self.step(x, parameter), state)
