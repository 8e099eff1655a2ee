"""A small convolutional network on CIFAR-10: an .npz file with `x_train`, 0 to 255, and `y_train`.

python docs/examples/cifar_conv.py cifar10.npz
export CIFAR10=cifar10.npz
dlf-dynamics spectrum cifar_conv.h5 --problem docs/examples/cifar_conv.py:setup
"""

import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from dlf_dynamics import Problem, Recorder
from dlf_dynamics.adapters import from_linen
from dlf_dynamics.analysis.spectra.oneshot import stability
from dlf_dynamics.losses import cross_entropy


class Network(nn.Module):
    """Two convolutions and a dense layer, all smooth."""

    @nn.compact
    def __call__(self, x):
        """Ten logits for each image."""
        for features in (16, 32):
            x = nn.avg_pool(nn.silu(nn.Conv(features, (3, 3))(x)), (2, 2), (2, 2))
        return nn.Dense(10)(x.reshape(len(x), -1))


def setup(data=None, examples=500):
    """Problem, optimizer and initial parameters, in float32."""
    with np.load(data or os.environ["CIFAR10"]) as file:
        images = jnp.asarray(file["x_train"][:examples] / 127.5 - 1, jnp.float32)
        labels = jnp.asarray(file["y_train"][:examples], jnp.int32)
    network = Network()
    apply, params = from_linen(network, jax.jit(network.init)(jax.random.key(0), images))
    return Problem(apply, cross_entropy, images, labels), optax.sgd(0.1), params


def main(path="cifar_conv.h5", steps=200, data=None, examples=500):
    """Trains on the full batch, and prints the stability at the end."""
    problem, optimizer, params = setup(data, examples)
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
    print(main(data=sys.argv[1]))
