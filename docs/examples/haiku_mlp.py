"""A Haiku network whose loss emphasises one class after the other: recorded, then analysed.

python docs/examples/haiku_mlp.py
dlf-dynamics spectrum haiku_mlp.h5 --problem docs/examples/haiku_mlp.py:setup
"""

import haiku as hk
import jax
import jax.numpy as jnp
import optax

from dlf_dynamics import Problem, Recorder
from dlf_dynamics.adapters import from_haiku
from dlf_dynamics.analysis.spectra.oneshot import sharpness, stability
from dlf_dynamics.datasets import digits
from dlf_dynamics.losses import ClassWeights, cross_entropy
from dlf_dynamics.schedules import Triangle

jax.config.update("jax_enable_x64", True)


def network(images):
    """64-32-10."""
    return hk.nets.MLP([32, 10], activation=jnp.tanh)(images)


def setup():
    """Problem, optimizer and initial parameters."""
    images, labels = jnp.asarray(digits().inputs[:500]), jnp.asarray(digits().labels[:500])
    transformed = hk.transform(network)
    apply, params = from_haiku(transformed, jax.jit(transformed.init)(jax.random.key(0), images))
    weights = ClassWeights(Triangle(num_classes=10, amplitude=20.0, period=50))
    return Problem(apply, cross_entropy, images, labels, weights), optax.sgd(0.2), params


def main(path="haiku_mlp.h5", steps=500):
    """Trains, and prints the curvature of the weighted loss at intervals."""
    problem, optimizer, params = setup()
    opt_state = optimizer.init(params)
    loss_and_gradient = jax.jit(jax.value_and_grad(Problem.objective, argnums=1))
    with Recorder(path, problem, optimizer=optimizer, every=5, overwrite=True) as run:
        for step in range(steps):
            if step % 25 == 0:
                print(step, sharpness(problem, params, step=step))
            loss, gradient = loss_and_gradient(problem, params, step)
            run.record(step, params, opt_state, loss=loss)
            changes, opt_state = optimizer.update(gradient, opt_state, params)
            params = optax.apply_updates(params, changes)
    return stability(problem, params, optimizer, step=steps)


if __name__ == "__main__":
    print(main())
