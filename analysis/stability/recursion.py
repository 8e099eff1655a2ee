"""Linear updates of second order, and how they respond to noise in the gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Response(NamedTuple):
    """The numbers c(a, b) = constant + linear (a + b) + spread (a - b)² - product a b.

    Noise that is white in time, with covariance X in the eigenbasis of the mean curvature, gives
    the parameters the covariance Z_ab = X_ab / s(a, b), where s is such a polynomial. For the noise
    of batches, X = N[Z] - p H Z H (see `mean_square_bounds`), so that N[Z] = c ∘ Z, c = s + p a b.
    Where c(a, a) > 0, it is positive everywhere and 1/c a positive definite kernel, as
    c = f(a) + f(b) - q a b with q = product + 2 spread >= 0 and f(a) >= q a²/2 > 0.
    """

    constant: float
    linear: float
    spread: float
    product: float

    def on(self, curvatures: Float[np.ndarray, " rank"]) -> Float[np.ndarray, "rank rank"]:
        """The matrix c(a, b) of some curvatures."""
        a, b = curvatures[:, None], curvatures
        return (
            self.constant
            + self.linear * (a + b)
            + self.spread * (a - b) ** 2
            - self.product * a * b
        )

    def least_slope(self, most: float) -> float:
        """A lower bound of c(a, a) / a for 0 < a <= most; `constant` must not be negative."""
        return self.constant / most + 2 * self.linear - max(self.product, 0.0) * most


@dataclass(frozen=True)
class Recursion:
    """An update x_(t+1) = (position - rate k) x_t - memory x_(t-1) - rate ξ_t on the curvature k.

    Attributes:
        rate: learning rate, in units in which the curvature is one of the loss.
        position: 1 + β for heavy ball; less with decoupled weight decay.
        memory: β for heavy ball.
    """

    rate: float
    position: float = 1.0
    memory: float = 0.0

    def response(self, noise: float, shift: float = 0.0) -> Response:
        """Its response to the noise of batches.

        With the responses x to one impulse, Σ_t x_a(t) x_b(t) = 1 / s, in closed form, for the
        curvatures a + shift and b + shift.

        Args:
            noise: p, the share of the noise; see `mean_square_bounds`.
            shift: curvature without noise.
        """
        memory, position, rate = self.memory, self.position, self.rate
        factor = (1 - memory) / (1 + memory)
        constant = factor * (1 + memory - position) * (1 + memory + position) / rate**2
        linear = factor * position / rate
        return Response(
            constant + 2 * linear * shift - factor * shift**2,
            linear - factor * shift,
            memory / (1 - memory**2),
            factor - noise,
        )

    def is_stable_on(self, curvatures: Float[np.ndarray, " rank"]) -> bool:
        """Whether it decays without noise on all of these curvatures."""
        return abs(self.memory) < 1 and bool(
            np.all(np.abs(self.position - self.rate * curvatures) < 1 + self.memory)
        )


@dataclass(frozen=True)
class HeavyBall:
    """Heavy ball at any learning rate; its response is linear in 1/rate.

    Attributes:
        momentum: β.
    """

    momentum: float = 0.0

    def decay(self, shift: float = 0.0) -> Response:
        """The part of the response that is proportional to 1/rate."""
        linear = 1 - self.momentum
        return Response(2 * linear * shift, linear, 0.0, 0.0)

    def growth(self, noise: float, shift: float = 0.0) -> Response:
        """The part that is subtracted from it, at any rate."""
        factor = (1 - self.momentum) / (1 + self.momentum)
        spread = self.momentum / (1 - self.momentum**2)
        return Response(factor * shift**2, factor * shift, -spread, noise - factor)

    def response(self, rate: float, noise: float, shift: float = 0.0) -> Response:
        """See `Recursion.response`."""
        recursion = Recursion(rate, 1 + self.momentum, self.momentum)
        return recursion.response(noise, shift)
