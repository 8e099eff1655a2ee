"""An Equinox network in an Equinox training loop: recorded, then analysed.

python docs/examples/equinox_mlp.py
dlf-dynamics spectrum equinox_mlp.h5 --problem docs/examples/equinox_mlp.py:setup
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from dlf_dynamics import Problem, Recorder
from dlf_dynamics.adapters import from_equinox
from dlf_dynamics.analysis.spectra.oneshot import stability
from dlf_dynamics.datasets import digits
from dlf_dynamics.losses import squared_error

jax.config.update("jax_enable_x64", True)

IMAGES, LABELS = (jnp.asarray(array[:200]) for array in (digits().inputs, digits().labels))
OPTIMIZER = optax.sgd(0.1, momentum=0.9)
MODEL = eqx.nn.MLP(64, 10, 32, 2, activation=jnp.tanh, key=jax.random.key(0))


def setup():
    """Problem, optimizer and initial parameters: the arrays of the model."""
    apply, params = from_equinox(MODEL)
    return Problem(apply, squared_error, IMAGES, LABELS), OPTIMIZER, params


@eqx.filter_jit
def update(model, opt_state):
    """Gradient descent with momentum."""

    def mean_loss(model):
        return jnp.mean(squared_error(jax.vmap(model)(IMAGES), LABELS))

    loss, gradient = eqx.filter_value_and_grad(mean_loss)(model)
    changes, opt_state = OPTIMIZER.update(gradient, opt_state)
    return eqx.apply_updates(model, changes), opt_state, loss


def main(path="equinox_mlp.h5", steps=500):
    """Trains, and prints whether the network is stable at the end."""
    model, (problem, optimizer, params) = MODEL, setup()
    opt_state = optimizer.init(params)
    with Recorder(path, problem, optimizer=optimizer, every=10, overwrite=True) as run:
        for step in range(steps):
            new_model, new_state, loss = update(model, opt_state)
            run.record(step, eqx.filter(model, eqx.is_inexact_array), opt_state, loss=loss)
            model, opt_state = new_model, new_state
    params = eqx.filter(model, eqx.is_inexact_array)
    return stability(problem, params, optimizer, step=steps)


if __name__ == "__main__":
    print(main())
