"""Branch points: where two branches of cycles cross, and the directions of both."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from dlf_dynamics.analysis.bifurcation.cycles import first_points, solve
from dlf_dynamics.analysis.bifurcation.expansion import Expansion, oriented
from dlf_dynamics.analysis.bifurcation.maps import Map

_MOST_STEPS = 12
"""Largest number of Newton steps; within a hundredth of a step of the branch, three or four do."""

_APART = 1e-11
"""Gap of the cycle, relative to the state, above which two branches come close without crossing."""

_LEVEL = 1e-7
"""Gradient of the reduced equation, relative to the map's, that counts as rounding."""

_PRECISION = 1e-9
"""Relative change in the last Newton step that counts as converged."""


class Crossing(NamedTuple):
    """Two branches through a point, along α q + β v, where β is the change of the parameter.

    Their ratios α/β solve the algebraic branching equation, c₁₁ α² + 2 c₁₂ α β + c₂₂ β² = 0.

    Attributes:
        points: (period, n) points of the cycle.
        parameter: value at the branch point.
        right: (n,) q, of unit length.
        left: (n,) w, with ⟨w, q⟩ = 1.
        drift: (n,) v, change of the cycle with the parameter.
        quadratic: c₁₁ = ⟨w, B(q,q)⟩, c₁₂ = ⟨w, B(q,v) + g_xp q⟩ and
            c₂₂ = ⟨w, B(v,v) + 2 g_xp v + g_pp⟩.
        error: last change in Newton's method: of the state relative to its size, of the parameter
            relative to itself or to 1/c₁₂, the change that shifts the multiplier by 1.
    """

    points: Float[np.ndarray, "period n"]
    parameter: float
    right: Float[np.ndarray, " n"]
    left: Float[np.ndarray, " n"]
    drift: Float[np.ndarray, " n"]
    quadratic: tuple[float, float, float]
    error: float

    def coordinates(self, tangent: Float[np.ndarray, " n+1"]) -> tuple[float, float]:
        """α and β of a direction of (first point, parameter)."""
        return float(self.left @ (tangent[:-1] - tangent[-1] * self.drift)), float(tangent[-1])

    def ratios(self, *, symmetric: bool) -> list[float]:
        """Values of α / β along the branches, two or none, or one of a pitchfork.

        Args:
            symmetric: whether c₁₁ is 0 to rounding, so that the other branch has β = 0.
        """
        first, mixed, last = self.quadratic
        if symmetric:
            return [-last / (2 * mixed)] if mixed else []
        roots = np.roots([first, 2 * mixed, last])
        if np.any(np.abs(np.imag(roots)) > 0):
            return []
        return [float(root) for root in np.real(roots)]

    def at(
        self,
        map_: Map,
        change: float,
        along: float,
        bend: Float[np.ndarray, " n"] | float = 0.0,
        *,
        period: int | None = None,
    ) -> tuple[float, Float[np.ndarray, "period n"]]:
        """Parameter and points of a nearby cycle, to first order except for what is added.

        Args:
            map_: the map.
            change: β, the change of the parameter.
            along: α.
            bend: added to the first point.
            period: number of points; that of the cycle when not given.
        """
        value = self.parameter + change
        first = self.points[0] + along * self.right + change * self.drift + bend
        return value, first_points(map_, first, value, period or len(self.points))


@np.errstate(all="ignore")
def find_crossing(
    map_: Map, state: Float[np.ndarray, " n"], parameter: float, period: int
) -> Crossing | None:
    """The branch point near a guess, by Newton's method; none where branches do not cross.

    The equation of the cycle is reduced to one in the plane of α and β by bordering (Golubitsky
    and Schaeffer 1985, §I.3). At a branch point its gradient vanishes, which is a regular problem
    although that of the cycle is singular; the reduced equation itself must vanish too.

    Args:
        map_: the map.
        state: guess of the first point.
        parameter: guess.
        period: period of the cycle.
    """
    state, border, error = np.asarray(state, float), None, np.inf
    for _ in range(_MOST_STEPS):
        points = first_points(map_, state, parameter, period)
        system = Expansion(map_, points, parameter)
        if not np.all(np.isfinite(system.jacobian)):
            return None
        if border is None:
            lefts, _, rights = np.linalg.svd(np.eye(len(state)) - system.jacobian)
            border = lefts[:, -1], rights[-1]
        plane = _Plane.of(system, *border)
        change, turn = plane.newton()
        size = float(np.max(np.abs(state)))
        moved = float(np.max(np.abs(change))) / (size if size > 1e-8 else 1.0)
        moved = max(moved, abs(turn) / max(abs(parameter), plane.parameter_scale()))
        if not np.isfinite(moved):
            return None
        if moved == 0 or moved >= error / 2:  # only rounding is left, or it diverges
            return plane.crossing(points, parameter, min(moved, error))
        state, parameter, error = state + change, float(parameter + turn), moved
    return None


class _Plane(NamedTuple):
    """The cycle's equation g(x) - x + ... = μ b on the plane of α = ⟨c, x⟩ and the parameter."""

    closing: Float[np.ndarray, " n"]
    value: float
    right: Float[np.ndarray, " n"]
    drift: Float[np.ndarray, " n"]
    left: Float[np.ndarray, " n"]
    gradient: Float[np.ndarray, " 2"]
    hessian: Float[np.ndarray, "2 2"]
    push: Float[np.ndarray, " n"]

    @classmethod
    def of(
        cls, system: Expansion, outside: Float[np.ndarray, " n"], along: Float[np.ndarray, " n"]
    ) -> _Plane:
        """Solves with 1 - J, bordered by a column b and a row c, and with its transpose."""
        matrix = np.eye(len(along)) - system.jacobian
        matrix = np.block([[matrix, outside[:, None]], [along, 0.0]])
        push = system.condensed.df_dparameter
        last = np.append(np.zeros(len(along)), 1.0)
        (*closing, value), (*right, first), (*drift, second), (*left, _) = (
            solve(matrix, np.append(system.condensed.offset, 0.0))[0],
            solve(matrix, last)[0],
            solve(matrix, np.append(push, 0.0))[0],
            solve(matrix.T, last)[0],
        )
        lines = [np.append(right, 0.0), np.append(drift, 1.0)]
        bend = lambda i, j: float(left @ np.real(system.derivative(lines[i], lines[j])))  # noqa: E731
        mixed = bend(0, 1)
        hessian = np.array([[bend(0, 0), mixed], [mixed, bend(1, 1)]])
        parts = (np.array(part) for part in (closing, right, drift, left))
        closing, right, drift, left = parts
        gradient = np.array([first, second])
        return cls(closing, value, right, drift, left, gradient, hessian, push)

    def newton(self) -> tuple[Float[np.ndarray, " n"], float]:
        """Changes of state and parameter that make the gradient vanish."""
        step, _ = solve(self.hessian, -self.gradient)
        return self.closing + self.right * step[0] + self.drift * step[1], float(step[1])

    def parameter_scale(self) -> float:
        """Change of the parameter that shifts the multiplier by 1."""
        return abs(float(self.left @ self.right) / self.hessian[0, 1])

    def crossing(self, points: np.ndarray, parameter: float, error: float) -> Crossing | None:
        """The crossing of the two branches, if they meet."""
        right = oriented(self.right)
        overlap, scale = float(self.left @ right), float(right @ self.right)
        size = float(np.max(np.abs(points)))
        size = size if size > 1e-8 else 1.0
        slack = _LEVEL * np.linalg.norm(self.push) + _PRECISION * size * abs(self.hessian[0, 1])
        level = np.all(np.abs(self.gradient) <= [_LEVEL, slack])
        if not (level and error <= _PRECISION and abs(self.value) <= _APART * size):
            return None
        (first, mixed), (_, last) = self.hessian / overlap
        quadratic = float(first / scale**2), float(mixed / scale), float(last)
        return Crossing(points, parameter, right, self.left / overlap, self.drift, quadratic, error)
