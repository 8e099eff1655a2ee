"""A Flax network in a custom training loop: recorded, then analysed.

python docs/examples/flax_mlp.py
dlf-dynamics spectrum flax_mlp.h5 --problem docs/examples/flax_mlp.py:setup
"""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from dlf_dynamics import Problem, Recorder
from dlf_dynamics.adapters import from_linen
from dlf_dynamics.analysis.spectra.oneshot import stability
from dlf_dynamics.datasets import digits
from dlf_dynamics.losses import squared_error

jax.config.update("jax_enable_x64", True)


class Network(nn.Module):
    """64-32-32-10; adapt a network with dropout by from_linen(..., train=False)."""

    @nn.compact
    def __call__(self, inputs):
        """Ten logits for each image."""
        for width in (32, 32):
            inputs = jnp.tanh(nn.Dense(width, param_dtype=float)(inputs))
        return nn.Dense(10, param_dtype=float)(inputs)


def setup():
    """Problem, optimizer and initial parameters."""
    images, labels = jnp.asarray(digits().inputs[:200]), jnp.asarray(digits().labels[:200])
    network = Network()
    apply, params = from_linen(network, jax.jit(network.init)(jax.random.key(0), images))
    return Problem(apply, squared_error, images, labels), optax.sgd(0.05), params


def main(path="flax_mlp.h5", steps=500):
    """Trains by gradient descent, and prints whether the network is stable at the end."""
    problem, optimizer, params = setup()
    opt_state = optimizer.init(params)
    loss_and_gradient = jax.jit(jax.value_and_grad(Problem.objective, argnums=1))
    with Recorder(path, problem, optimizer=optimizer, every=10, overwrite=True) as run:
        for step in range(steps):
            loss, gradient = loss_and_gradient(problem, params, step)
            run.record(step, params, opt_state, loss=loss)
            changes, opt_state = optimizer.update(gradient, opt_state, params)
            params = optax.apply_updates(params, changes)
    return stability(problem, params, optimizer, step=steps)


if __name__ == "__main__":
    print(main())
