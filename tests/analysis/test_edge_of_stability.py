"""The edge of stability of Cohen et al. (2021), where the sharpness at the centres settles."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from numpy.polynomial import chebyshev

from dlf_dynamics.analysis.linalg.eigensolver import top_eigenpairs
from dlf_dynamics.models import FullyConnected
from dlf_dynamics.operators import hessian
from dlf_dynamics.problem import Problem

LEARNING_RATE = 0.1


@jax.jit
def descend(problem, params, count):
    step = lambda _, theta: theta - LEARNING_RATE * jax.grad(problem.objective)(theta, 0)  # noqa: E731
    return jax.lax.fori_loop(0, count, step, params)


@jax.jit
def product(problem, params, vector):
    return hessian(problem, params, 0)(vector)


def test_the_sharpness_at_the_centres_settles_at_two_over_the_learning_rate():
    # Chebyshev's polynomial of degree 4 at 20 points, mean squared error over 2, 1-100-100-1.
    points = np.linspace(-1, 1, 20)
    targets = chebyshev.Chebyshev.basis(4)(points)
    model = FullyConnected((100, 100), "tanh", "lecun-normal")
    problem, theta = Problem(
        apply=model.apply,
        criterion=lambda outputs, targets: (outputs[:, 0] - targets) ** 2 / 2,
        inputs=jnp.asarray(points[:, None]),
        targets=jnp.asarray(targets),
    ).ravel(model.init(jax.random.key(0), (1,), 1))
    assert theta.size == 10_401
    theta = descend(problem, theta, 14_000)
    for _ in range(4):
        theta = descend(problem, theta, 2_000)
        following = descend(problem, theta, 1)
        after = descend(problem, following, 1)
        # It oscillates along the top eigenvector all the while.
        one, two = following - theta, after - following
        assert one @ two < -0.5 * jnp.linalg.norm(one) * jnp.linalg.norm(two)
        centre = (theta + 2 * following + after) / 4
        found = top_eigenpairs(
            Partial(product, problem, centre),
            theta.size,
            1,
            tol=1e-8,
            max_matvecs=100,
            key=jax.random.key(1),
        )
        assert found.converged[0]
        np.testing.assert_allclose(LEARNING_RATE * found.eigenvalues[0], 2, rtol=0, atol=5e-3)
