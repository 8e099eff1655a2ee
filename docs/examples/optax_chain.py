"""A custom optax chain, linear in the gradients: its threshold changes with the schedule.

python docs/examples/optax_chain.py
dlf-dynamics spectrum optax_chain.h5 --problem docs/examples/optax_chain.py:setup
"""

import jax
import jax.numpy as jnp
import optax

from dlf_dynamics import Problem, Recorder
from dlf_dynamics.analysis.spectra.oneshot import stability
from dlf_dynamics.datasets import digits
from dlf_dynamics.losses import squared_error

jax.config.update("jax_enable_x64", True)


def apply(params, inputs):
    """A plain function of a dictionary of arrays."""
    return jnp.tanh(inputs @ params["in"] + params["bias"]) @ params["out"]


def setup():
    """Problem, optimizer and initial parameters."""
    images, labels = jnp.asarray(digits().inputs[:200]), jnp.asarray(digits().labels[:200])
    first, second = jax.random.split(jax.random.key(0))
    params = {
        "in": jax.random.normal(first, (64, 32)) / 8,
        "bias": jnp.zeros(32),
        "out": jax.random.normal(second, (32, 10)) / 6,
    }
    optimizer = optax.chain(
        optax.add_decayed_weights(1e-3),
        optax.trace(decay=0.9),
        optax.scale_by_learning_rate(optax.cosine_decay_schedule(0.1, 500, alpha=0.1)),
    )
    return Problem(apply, squared_error, images, labels), optimizer, params


def main(path="optax_chain.h5", steps=500):
    """Trains, and prints the stability at intervals."""
    problem, optimizer, params = setup()
    opt_state, found = optimizer.init(params), []
    loss_and_gradient = jax.jit(jax.value_and_grad(Problem.objective, argnums=1))
    with Recorder(path, problem, optimizer=optimizer, every=10, overwrite=True) as run:
        for step in range(steps):
            if step % 50 == 0:
                found.append(stability(problem, params, optimizer, step=step))
                print(f"step {step}: {found[-1]}")
            loss, gradient = loss_and_gradient(problem, params, step)
            run.record(step, params, opt_state, loss=loss)
            changes, opt_state = optimizer.update(gradient, opt_state, params)
            params = optax.apply_updates(params, changes)
    return found


if __name__ == "__main__":
    main()
