"""What an orbit of period 2 with five leading multipliers costs at 10⁵ parameters, in gradients.

The network is that of the headline run, 16,667 neurons wide (100,005 parameters) with tanh, on its
data, with squared error and the class weights of one step in the middle of a pulse. An L2 term
pulls the parameters to where they started, λ/2 |θ - θ₀|². Decay to zero does not do: neurons that
share their work may turn into one another at hardly any change of the loss, so that the orbits of
a wide network are hardly isolated.

The start is not counted in the limit and is told apart: L-BFGS to a gradient of 1e-5, the fixed
point by `find_cycle`, ARPACK for the top eigenvector. At a learning rate 1 % beyond the flip the
orbit is looked for from a guess of its amplitude along that eigenvector. A product with a
Jacobian counts as three gradients: forward differentiation of a gradient evaluates it, too. The
time that a product takes, over that of a gradient, is printed beside.
"""

from __future__ import annotations

import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial
from scipy.sparse.linalg import LinearOperator, eigsh

from dlf_dynamics import PRESETS
from dlf_dynamics.analysis.bifurcation import Map, find_cycle
from dlf_dynamics.assembly import build
from dlf_dynamics.config import LossConfig, ModelConfig
from dlf_dynamics.datasets import load_dataset
from dlf_dynamics.models import make_model

WIDTH = 16_667
STEP = 2500
DECAY = 1e-2
BEYOND = 1e-2
AMPLITUDE = 1e-2
ROUNDS = 5
MOST_GRADIENTS = 2000
OF_A_PRODUCT = 3


def network(width: int):
    """The frozen problem and initial parameters."""
    model = ModelConfig(widths=(width,), activation="tanh", init="glorot-normal")
    config = replace(PRESETS["published"], model=model, loss=LossConfig("squared-error"))
    params = make_model(model).init(jax.random.key(0), (2,), 3)
    flat = ravel_pytree(params)[0].astype(float)
    return build(config, load_dataset(config.data)).problem, flat


@jax.jit
def loss_and_gradient(problem, origin, params):
    pulled = lambda x: problem.objective(x, STEP) + DECAY / 2 * jnp.sum((x - origin) ** 2)  # noqa: E731
    return jax.value_and_grad(pulled)(params)


@jax.jit
def product(problem, origin, params, vector):
    return jax.jvp(lambda x: loss_and_gradient(problem, origin, x)[1], (params,), (vector,))[1]


def descent(problem, origin, params, rate):
    return params - rate * loss_and_gradient(problem, origin, params)[1]


def seconds(function, *arguments) -> float:
    jax.block_until_ready(function(*arguments))
    start = time.perf_counter()
    for _ in range(ROUNDS):
        jax.block_until_ready(function(*arguments))
    return (time.perf_counter() - start) / ROUNDS


def minimum(problem, origin):
    """By L-BFGS, and how many gradients that took."""
    found = scipy.optimize.minimize(
        lambda x: tuple(np.asarray(part) for part in loss_and_gradient(problem, origin, x)),
        np.asarray(origin),
        jac=True,
        method="L-BFGS-B",
        options={"gtol": 1e-5, "maxcor": 30, "maxiter": 1000},
    )
    return found.x, found.nfev


def top_of(problem, origin, params):
    """The largest eigenvalue of the Hessian, its vector and the products that it took."""
    made = []

    def counted(vector):
        made.append(1)
        return np.asarray(product(problem, origin, params, jnp.asarray(vector)))

    size = len(params)
    values, vectors = eigsh(
        LinearOperator((size, size), matvec=counted, dtype=np.float64), 1, which="LA"
    )
    return float(values[0]), vectors[:, 0], len(made)


def gradients(cycle) -> int:
    return cycle.map_evaluations + OF_A_PRODUCT * cycle.jacobian_products


def test_an_orbit_with_five_multipliers_takes_at_most_two_thousand_gradients(benchmark, capsys):
    problem, origin = network(WIDTH)
    assert len(origin) >= 1e5
    map_ = Map(Partial(descent, problem, origin))
    guess, made = minimum(problem, origin)
    largest, _, looked = top_of(problem, origin, jnp.asarray(guess))
    centre = find_cycle(map_, guess, 1 / largest, 1)
    assert centre.converged, centre.message
    params = centre.points[0]
    largest, vector, again = top_of(problem, origin, jnp.asarray(params))
    rate = 2 * (1 + BEYOND) / largest
    points = np.stack([params + AMPLITUDE * vector, params - AMPLITUDE * vector])
    each = seconds(loss_and_gradient, problem, origin, jnp.asarray(params))
    dual = seconds(product, problem, origin, jnp.asarray(params), jnp.asarray(vector))

    orbit = benchmark.pedantic(find_cycle, args=(map_, points, rate, 2), rounds=1)
    amplitude = np.linalg.norm(orbit.points[0] - orbit.points[1]) / 2
    count = gradients(orbit)
    benchmark.extra_info.update(gradients=count, products=orbit.jacobian_products)
    with capsys.disabled():
        print(
            f"\nperiod 2 of {len(origin):,} parameters: {count} gradients "
            f"({orbit.map_evaluations} and {orbit.jacobian_products} products, "
            f"{dual / each:.2f} gradients each by the clock), "
            f"{benchmark.stats.stats.mean:.0f} s, {1e3 * each:.0f} ms a gradient\n"
            f"amplitude {amplitude:.4f}, residual {orbit.residual:.1e}, {orbit.message}\n"
            f"multipliers {orbit.multipliers.round(6)}\nresiduals {orbit.multiplier_residuals}, "
            f"{orbit.neutral_found} neutral ones found, stable {orbit.stable}\n"
            f"start: {made} gradients of L-BFGS, {gradients(centre)} for the fixed point, "
            f"{OF_A_PRODUCT * (looked + again)} for eigenvectors"
        )
    assert orbit.converged, orbit.message
    assert orbit.least_period == 2
    assert amplitude > 1e-3
    assert np.all(orbit.multiplier_residuals <= 1e-6)
    assert count <= MOST_GRADIENTS
