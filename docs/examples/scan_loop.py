"""Many updates in one compiled `lax.scan`, whose returned states are recorded between calls.

python docs/examples/scan_loop.py
dlf-dynamics spectrum scan_loop.h5 --problem docs/examples/scan_loop.py:setup
"""

import jax
import jax.numpy as jnp
import optax

from dlf_dynamics import Problem, Recorder
from dlf_dynamics.analysis.spectra.oneshot import stability

jax.config.update("jax_enable_x64", True)

STRETCH = 20


def apply(params, inputs):
    """A network of two layers with one input."""
    weight, bias, out = params
    return jnp.tanh(inputs[:, None] * weight + bias) @ out


def setup():
    """Regression on a sine: problem, optimizer and initial parameters."""
    inputs = jnp.linspace(-3, 3, 100)
    keys = jax.random.split(jax.random.key(0), 3)
    params = tuple(jax.random.normal(key, (20,)) for key in keys)
    problem = Problem(apply, lambda f, y: (f - y) ** 2 / 2, inputs, jnp.sin(2 * inputs))
    return problem, optax.sgd(0.05), params


def main(path="scan_loop.h5", steps=2000):
    """Trains in stretches of equal length, of which the number of steps is a multiple."""
    problem, optimizer, params = setup()
    opt_state = optimizer.init(params)

    @jax.jit
    def stretch(params, opt_state, start):
        def one(state, step):
            loss, gradient = jax.value_and_grad(problem.objective)(state[0], step)
            changes, new_state = optimizer.update(gradient, state[1], state[0])
            return (optax.apply_updates(state[0], changes), new_state), (*state, loss)

        return jax.lax.scan(one, (params, opt_state), start + jnp.arange(STRETCH))

    with Recorder(path, problem, optimizer=optimizer, every=10, overwrite=True) as run:
        for start in range(0, steps, STRETCH):
            (params, opt_state), before = stretch(params, opt_state, start)
            for i in range(STRETCH):
                old_params, old_state, loss = jax.tree.map(lambda leaf, i=i: leaf[i], before)
                run.record(start + i, old_params, old_state, loss=loss)
    return stability(problem, params, optimizer, step=steps)


if __name__ == "__main__":
    print(main())
