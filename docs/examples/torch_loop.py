"""A PyTorch network in a PyTorch training loop: recorded, then analysed.

python docs/examples/torch_loop.py
dlf-dynamics spectrum torch_loop.h5 --problem docs/examples/torch_loop.py:setup
"""

import jax
import jax.numpy as jnp
import optax
import torch

from dlf_dynamics import Problem, Recorder
from dlf_dynamics.adapters import from_torch, params_of
from dlf_dynamics.analysis.spectra.oneshot import stability
from dlf_dynamics.datasets import digits
from dlf_dynamics.losses import squared_error

jax.config.update("jax_enable_x64", True)

RATE = 0.09


def network():
    """64-16-10, with the initial weights."""
    torch.manual_seed(0)
    layers = torch.nn.Linear(64, 16), torch.nn.Tanh(), torch.nn.Linear(16, 10)
    return torch.nn.Sequential(*layers).double()


def setup():
    """Problem, optimizer and initial parameters."""
    images, labels = jnp.asarray(digits().inputs[:100]), jnp.asarray(digits().labels[:100])
    apply, params = from_torch(network(), images)
    return Problem(apply, squared_error, images, labels), optax.sgd(RATE), params


def main(path="torch_loop.h5", steps=500):
    """Trains by PyTorch's gradient descent, and prints whether the network is stable at the end."""
    problem, optimizer, params = setup()
    module, state = network(), optimizer.init(params)
    images, targets = torch.tensor(digits().inputs[:100]), torch.eye(10)[digits().labels[:100]]
    descent = torch.optim.SGD(module.parameters(), lr=RATE)
    with Recorder(path, problem, optimizer=optimizer, every=10, overwrite=True) as run:
        for step in range(steps):
            loss = torch.sum((module(images) - targets) ** 2) / len(images)
            params = params_of(problem.apply, module.state_dict())
            run.record(step, params, state, loss=loss.item())
            descent.zero_grad()
            loss.backward()
            descent.step()
    params = params_of(problem.apply, module.state_dict())
    return stability(problem, params, optimizer, step=steps)


if __name__ == "__main__":
    print(main())
