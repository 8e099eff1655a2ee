"""Modes: eigenvectors followed along a run by their overlaps, whatever their rank becomes."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

_SAME_MODE = 0.5
"""Squared overlap above which two eigenvectors are the same mode.

The squared overlaps of a vector with an orthonormal set add up to at most 1, so no vector has two
partners.
"""


def overlaps(
    before: Float[np.ndarray, "m n"], after: Float[np.ndarray, "k n"]
) -> Float[np.ndarray, "k k"]:
    """Squared inner products of each vector after with each of the first k before."""
    count = len(after)
    squares = np.zeros((count, count))
    known = before[:count]
    squares[:, : len(known)] = np.nan_to_num((after @ known.T) ** 2)
    return squares


def follow_modes(steps: list[Float[np.ndarray, "k k"]], count: int) -> Int[np.ndarray, "steps n"]:
    """The number of the mode that each eigenvector belongs to, -1 where there is none.

    An eigenvector that overlaps with none of those before by more than _SAME_MODE begins a mode.

    Args:
        steps: overlaps of each checkpoint with the one before.
        count: number of columns of the result.

    >>> swapped = np.array([[0.1, 0.9], [0.9, 0.1]])
    >>> follow_modes([np.zeros((2, 2)), np.eye(2), swapped], 2).tolist()
    [[0, 1], [0, 1], [1, 0]]
    """
    numbers = np.full((len(steps), count), -1)
    new = 0
    for row, matrix in enumerate(steps):
        size = len(matrix)
        if row > 0:
            for after, before in np.argwhere(matrix > _SAME_MODE):
                numbers[row, after] = numbers[row - 1, before]
        for index in range(size):
            if numbers[row, index] < 0:
                numbers[row, index] = new
                new += 1
    return numbers
