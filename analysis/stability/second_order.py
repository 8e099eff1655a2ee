"""An optimizer's update on a quadratic as a linear recursion, read off the update itself."""

from __future__ import annotations

import numpy as np
import optax

from dlf_dynamics.analysis.stability.linearised import Hyperparameters, linear_maps
from dlf_dynamics.analysis.stability.recursion import Recursion
from dlf_dynamics.errors import ConfigError

_ACCURACY = 1e-9
"""Tolerance of numbers that must vanish, relative to the terms of which they are differences."""


def recursion_of(
    optimizer: optax.GradientTransformation, step: int, hyperparameters: Hyperparameters = None
) -> Recursion:
    """The update of a step as a recursion of second order in the parameters, gradients given.

    With z = (x, v) ↦ A z + b g, elimination of v gives x_(t+1) = (A_00 + A_11) x_t
    - (det A) x_(t-1) + b_0 g_t + (A_01 b_1 - A_11 b_0) g_(t-1). Where the last term vanishes, noise
    of the gradient enters as in heavy ball. This holds for SGD, RMSProp, Adam and AdamW (with P
    frozen), but not for Nesterov's momentum and NAdam.

    Args:
        optimizer: an optax transformation that has a threshold (see `critical_eigenvalue`).
        step: number of updates made before.
        hyperparameters: hyperparameters in its state.

    Raises:
        ConfigError: when the update is no such recursion.

    >>> recursion_of(optax.adamw(0.1, weight_decay=0.5), step=0)
    Recursion(rate=0.01, position=1.85, memory=0.855)
    """
    maps = linear_maps(optimizer, np.array([step]), hyperparameters)
    constant, linear = (part[0] for part in maps)
    moves = _moving(constant, linear)
    if len(moves) > 2:
        raise ConfigError(
            f"the optimizer's update has {len(moves) - 1} numbers of state for each parameter; "
            "expected at most one, like the momentum of heavy ball and Adam, for a threshold of "
            "mini-batches"
        )
    constant, response = constant[np.ix_(moves, moves)], linear[moves, 0]
    if len(moves) == 1:
        return _rounded(-response[0], constant[0, 0], 0.0)
    parts = constant[0, 1] * response[1], constant[1, 1] * response[0]
    if abs(parts[0] - parts[1]) > _ACCURACY * np.max(np.abs(parts)):
        raise ConfigError(
            "the optimizer uses a gradient in two updates with different weights, as Nesterov's "
            "momentum and NAdam do; expected SGD, heavy ball, RMSProp, Adam or AdamW for a "
            "threshold of mini-batches"
        )
    return _rounded(-response[0], np.trace(constant), np.linalg.det(constant))


def _moving(constant: np.ndarray, linear: np.ndarray) -> list[int]:
    """The parameter and the parts of the state that change it, now or later."""
    matrix = np.abs(constant) + np.abs(linear)
    moves, waiting = {0}, [0]
    while waiting:
        new = set(np.flatnonzero(matrix[waiting.pop()]).tolist()) - moves
        moves |= new
        waiting += new
    return sorted(moves)


def _rounded(rate: float, position: float, memory: float) -> Recursion:
    """The recursion rounded to certain digits, so that rounding does not look like decay."""
    rate, position, memory = (float(f"{number:.13g}") for number in (rate, position, memory))
    neutral = 1 + memory
    return Recursion(rate, neutral if abs(position - neutral) < 1e-12 else position, memory)
