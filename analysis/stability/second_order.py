"""What linear recursion an optimizer's update is on a quadratic, read off the update itself."""

from __future__ import annotations

import numpy as np
import optax

from dlf_dynamics.analysis.stability.linearised import Hyperparameters, linear_maps
from dlf_dynamics.analysis.stability.recursion import Recursion
from dlf_dynamics.errors import ConfigError

_ACCURACY = 1e-9
"""Of the numbers that must vanish, relative to those of which they are differences."""


def recursion_of(
    optimizer: optax.GradientTransformation, step: int, told: Hyperparameters = None
) -> Recursion:
    """The update of a step as a recursion of second order in the parameters, gradients given.

    With z = (x, v) ↦ A z + b g, elimination of v gives x_(t+1) = (A_00 + A_11) x_t
    - (det A) x_(t-1) + b_0 g_t + (A_01 b_1 - A_11 b_0) g_(t-1). Where the last term vanishes, noise
    of the gradient enters as it does in heavy ball: so it is for SGD, RMSProp, Adam and AdamW (with
    P frozen), and so it is not for Nesterov's momentum and NAdam.

    Args:
        optimizer: an optax transformation that has a threshold (see `critical_eigenvalue`).
        step: number of updates made before.
        told: hyperparameters in its state.

    Raises:
        ConfigError: when it is no such recursion.

    >>> recursion_of(optax.adamw(0.1, weight_decay=0.5), step=0)
    Recursion(rate=0.01, position=1.85, memory=0.855)
    """
    constant, slope = (part[0] for part in linear_maps(optimizer, np.array([step]), told))
    moves = _moving(constant, slope)
    if len(moves) > 2:
        raise ConfigError(
            f"the optimizer's update has {len(moves) - 1} numbers of state for each parameter; "
            "expected at most one, as the momentum of heavy ball and Adam is, for a threshold of "
            "mini-batches"
        )
    constant, answer = constant[np.ix_(moves, moves)], slope[moves, 0]
    if len(moves) == 1:
        return _rounded(-answer[0], constant[0, 0], 0.0)
    parts = constant[0, 1] * answer[1], constant[1, 1] * answer[0]
    if abs(parts[0] - parts[1]) > _ACCURACY * np.max(np.abs(parts)):
        raise ConfigError(
            "the optimizer uses a gradient in two updates with weights of its own, as Nesterov's "
            "momentum and NAdam do; expected SGD, heavy ball, RMSProp, Adam or AdamW for a "
            "threshold of mini-batches"
        )
    return _rounded(-answer[0], np.trace(constant), np.linalg.det(constant))


def _moving(constant: np.ndarray, slope: np.ndarray) -> list[int]:
    """The parameter and the parts of the state that change it, now or later."""
    matrix = np.abs(constant) + np.abs(slope)
    moves, waiting = {0}, [0]
    while waiting:
        new = set(np.flatnonzero(matrix[waiting.pop()]).tolist()) - moves
        moves |= new
        waiting += new
    return sorted(moves)


def _rounded(rate: float, position: float, memory: float) -> Recursion:
    """With the digits that are right, so that there is no decay where there is none."""
    rate, position, memory = (float(f"{number:.13g}") for number in (rate, position, memory))
    neutral = 1 + memory
    return Recursion(rate, neutral if abs(position - neutral) < 1e-12 else position, memory)
