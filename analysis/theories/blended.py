"""A loss between two steps, for runs whose loss depends on the step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from dlf_dynamics.analysis.bifurcation.flip import Objective
from dlf_dynamics.problem import Problem

Vector = Float[Array, " params"]


class Moment(NamedTuple):
    """A time between two steps.

    Attributes:
        step: the step before it, t.
        fraction: f, from 0 to 1.
    """

    step: Int[Array | np.ndarray, ""]
    fraction: Float[Array | np.ndarray, ""]


@dataclass(frozen=True)
class _Blended:
    """A function of the step, interpolated linearly; it compares by value."""

    function: Callable[..., Array]
    position: int

    def __call__(self, *arguments: Any) -> Array:
        moment: Moment = arguments[self.position]
        before, after = list(arguments), list(arguments)
        before[self.position], after[self.position] = moment.step, moment.step + 1
        begin, end = self.function(*before), self.function(*after)
        return begin + moment.fraction.astype(begin.dtype) * (end - begin)


def blended(objective: Objective) -> Partial:
    """F(θ, t + f) = (1 - f) F(θ, t) + f F(θ, t + 1), as a function of θ and a `Moment`.

    A function of the parameters alone is the same at all times. For a problem the class weights are
    interpolated, so that the model is evaluated only once.
    """
    if not isinstance(objective, Problem):
        return Partial(_steady, objective if isinstance(objective, Partial) else Partial(objective))
    problem = objective.steady()
    weights, loss = problem.example_weights, problem.parameter_loss
    between = replace(
        problem,
        example_weights=None if weights is None else _Blended(weights, 0),
        parameter_loss=None if loss is None else _Blended(loss, 1),
    )
    return Partial(_of_problem, between)


def _steady(function: Partial, params: Vector, moment: Moment) -> Float[Array, ""]:
    return function(params)


def _of_problem(problem: Problem, params: Vector, moment: Moment) -> Float[Array, ""]:
    return problem.objective(params, moment)  # pyright: ignore[reportArgumentType]
