"""What branches in one parameter and curves in two share: tangents, roots, the shortest steps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.optimize
from jaxtyping import Float

from dlf_dynamics.analysis.bifurcation.newton import solve

SHARPEST_TURN = 0.3
"""Angle between the tangents of neighbouring points, in radians, above which a step is halved."""

LEAST_STEP = 1e-7
"""Part of the largest step below which a continuation gives up."""


def unit_tangent(system: Float[np.ndarray, "m m"]) -> Float[np.ndarray, " m"] | None:
    """Unit vector along which all linear equations but the last hold and the last one grows.

    It has either sense where it is normal to the last row, and is none where it cannot be computed.
    """
    last = np.append(np.zeros(len(system) - 1), 1.0)
    tangent, _ = solve(system, last)
    if not np.all(np.isfinite(tangent)):
        return None
    if np.linalg.norm(system @ tangent - last) > 1e-6:  # the tangent is normal to the last row
        tangent = np.linalg.svd(system[:-1])[2][-1]
    return tangent / np.linalg.norm(tangent)


def root_along(function: Callable[[float], float], length: float, precision: float) -> float | None:
    """Distance at which a function of the distance vanishes, by Brent's method.

    Args:
        function: NaN where it cannot be computed.
        length: largest distance; the smallest one is 0.
        precision: error of the distance, relative to the length.

    Returns:
        None where the function does not change its sign, or could not be computed on the way.
    """
    try:
        root = scipy.optimize.brentq(function, 0, length, xtol=precision * length)
    except ValueError:
        return None
    return float(root)  # type: ignore[arg-type]
