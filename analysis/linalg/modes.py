"""Modes: eigenvectors followed along a run by their overlaps, whatever their rank becomes."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

_SAME_MODE = 0.5
"""Squared overlap above which two eigenvectors are the same mode.

Those of a vector with an orthonormal set add up to 1 at most, so no vector has two partners.
"""


def overlaps(
    before: Float[np.ndarray, "m n"], after: Float[np.ndarray, "k n"]
) -> Float[np.ndarray, "k k"]:
    """Squared inner products of each vector after with each of the first k before."""
    count = len(after)
    found = np.zeros((count, count))
    known = before[:count]
    found[:, : len(known)] = np.nan_to_num((after @ known.T) ** 2)
    return found


def follow_modes(steps: list[Float[np.ndarray, "k k"]], count: int) -> Int[np.ndarray, "steps n"]:
    """A number for the mode that each eigenvector belongs to, -1 where there is none.

    An eigenvector that overlaps with none of those before by more than _SAME_MODE begins a mode.

    Args:
        steps: for each checkpoint, the overlaps with the one before.
        count: columns of the result.

    >>> swapped = np.array([[0.1, 0.9], [0.9, 0.1]])
    >>> follow_modes([np.zeros((2, 2)), np.eye(2), swapped], 2).tolist()
    [[0, 1], [0, 1], [1, 0]]
    """
    found = np.full((len(steps), count), -1)
    following = 0
    for row, matrix in enumerate(steps):
        size = len(matrix)
        if row > 0:
            for after, before in np.argwhere(matrix > _SAME_MODE):
                found[row, after] = found[row - 1, before]
        for place in range(size):
            if found[row, place] < 0:
                found[row, place] = following
                following += 1
    return found
