"""A small causal transformer memorises a sentence, character by character, with Adam.

python docs/examples/transformer.py
dlf-dynamics spectrum transformer.h5 --problem docs/examples/transformer.py:setup
"""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from dlf_dynamics import Problem, Recorder
from dlf_dynamics.adapters import from_linen
from dlf_dynamics.analysis.spectra.oneshot import stability

TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom"  # Dickens
LETTERS, LENGTH, WIDTH = sorted(set(TEXT)), 16, 32


class Transformer(nn.Module):
    """Attention, then two layers."""

    @nn.compact
    def __call__(self, letters):
        """Logits of the next letter after each letter."""
        places = nn.Embed(LENGTH, WIDTH)(jnp.arange(LENGTH))
        x = nn.Embed(len(LETTERS), WIDTH)(letters) + places
        causal = nn.make_causal_mask(letters)
        x += nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(x), mask=causal)
        x += nn.Dense(WIDTH)(nn.gelu(nn.Dense(2 * WIDTH)(nn.LayerNorm()(x))))
        return nn.Dense(len(LETTERS))(nn.LayerNorm()(x))


def setup():
    """Problem (windows of the text, and the letters that follow), optimizer, initial parameters."""
    codes = [LETTERS.index(letter) for letter in TEXT]
    windows = jnp.array([codes[i : i + LENGTH + 1] for i in range(len(codes) - LENGTH)])
    network = Transformer()
    apply, params = from_linen(network, jax.jit(network.init)(jax.random.key(0), windows[:, :-1]))
    criterion = optax.softmax_cross_entropy_with_integer_labels  # the loss of each letter; summed
    return Problem(apply, criterion, windows[:, :-1], windows[:, 1:]), optax.adam(3e-3), params


def main(path="transformer.h5", steps=300):
    """Trains, and prints the stability of Adam's preconditioned Hessian."""
    problem, optimizer, params = setup()
    opt_state, update = optimizer.init(params), jax.jit(optimizer.update)
    loss_and_gradient = jax.jit(jax.value_and_grad(Problem.objective, argnums=1))
    with Recorder(path, problem, optimizer=optimizer, every=10, overwrite=True) as run:
        for step in range(steps):
            loss, gradient = loss_and_gradient(problem, params, step)
            run.record(step, params, opt_state, loss=loss)
            changes, opt_state = update(gradient, opt_state, params)
            params = optax.apply_updates(params, changes)
    return stability(problem, params, optimizer, opt_state=opt_state, step=steps)


if __name__ == "__main__":
    print(main())
