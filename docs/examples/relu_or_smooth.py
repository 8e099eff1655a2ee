"""The same network with ReLU and with smooth activations: how sharp each becomes.

    python docs/examples/relu_or_smooth.py

Smooth networks settle where sharpness / threshold is 1, the edge of stability. With ReLU it stays
below: the gradient jumps where a unit switches, which the Hessian does not contain, and steps begin
to alternate earlier.
"""

import jax
import jax.numpy as jnp
import optax

from dlf_dynamics import Problem, Recorder
from dlf_dynamics.analysis.spectra.oneshot import stability
from dlf_dynamics.datasets import digits
from dlf_dynamics.losses import squared_error
from dlf_dynamics.models import FullyConnected

jax.config.update("jax_enable_x64", True)

ACTIVATIONS = ("relu", "softplus", "tanh")


def setup(activation="relu"):
    """Problem, optimizer and initial parameters."""
    images, labels = jnp.asarray(digits().inputs[:200]), jnp.asarray(digits().labels[:200])
    network = FullyConnected((32, 32), activation, "glorot-normal")
    problem = Problem(network.apply, squared_error, images, labels)
    return problem, optax.sgd(0.05), network.init(jax.random.key(0), (64,), 10)


def main(path="relu_or_smooth.h5", steps=1200):
    """Trains and records each network, and prints sharpness over threshold along the way."""
    table = {}
    for activation in ACTIVATIONS:
        problem, optimizer, params = setup(activation)
        opt_state, table[activation] = optimizer.init(params), []
        loss_and_gradient = jax.jit(jax.value_and_grad(Problem.objective, argnums=1))
        name = f"{path}".replace(".h5", f".{activation}.h5")
        with Recorder(name, problem, optimizer=optimizer, every=10, overwrite=True) as run:
            for step in range(steps):
                loss, gradient = loss_and_gradient(problem, params, step)
                run.record(step, params, opt_state, loss=loss)
                changes, opt_state = optimizer.update(gradient, opt_state, params)
                params = optax.apply_updates(params, changes)
                if (step + 1) % (steps // 6) == 0:
                    table[activation].append(stability(problem, params, optimizer, step=step + 1))
        ratios = [f"{found.value / found.threshold:.2f}" for found in table[activation]]
        print(f"{activation:9} loss {loss:.3f}, sharpness / threshold", *ratios)
    return table


if __name__ == "__main__":
    main()
