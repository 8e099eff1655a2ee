"""A GPT of 10⁷ parameters learns Shakespeare's sonnets; eigenvalues of its Hessian, certified.

python docs/examples/gpt.py
dlf-dynamics spectrum gpt.h5 --problem docs/examples/gpt.py:setup --steps 200: --k 3 --tol 0.01 \
    --certificate float32 --ntk-examples 0
"""

from dataclasses import replace
from importlib import resources

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dlf_dynamics import Problem, Recorder, top_hessian
from dlf_dynamics.losses import MeanOverPositions, cross_entropy

OPTIMIZER = optax.adam(3e-4)
SIZE = {"vocabulary": 61, "layers": 6, "width": 384, "heads": 6}


def gpt(vocabulary, context, layers, width, heads):
    """Functions that make parameters from a key, and outputs from parameters and tokens."""

    def init(key):
        shapes = {"token": (vocabulary, width), "position": (context, width)}
        shapes |= {"in": (layers, width, 3 * width), "mix": (layers, width, width)}
        shapes |= {"up": (layers, width, 4 * width), "down": (layers, 4 * width, width)}
        keys = jax.random.split(key, len(shapes))
        drawn = zip(shapes.items(), keys, strict=True)
        params = {name: 0.02 * jax.random.normal(key, shape) for (name, shape), key in drawn}
        norms = {"attention": jnp.ones((layers, width)), "layer": jnp.ones((layers, width))}
        return params | norms | {"end": jnp.ones(width)}

    @jax.checkpoint  # keeps only the input of each block, and recomputes the rest
    def block(x, p):
        parted = (*x.shape[:2], 3, heads, width // heads)
        query, key, value = jnp.moveaxis(
            (normed(x, p["attention"]) @ p["in"]).reshape(parted), 2, 0
        )
        scores = jnp.einsum("nqhc,nkhc->nhqk", query, key) / (width // heads) ** 0.5
        seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        mixed = jnp.einsum("nhqk,nkhc->nqhc", jax.nn.softmax(scores, where=seen), value)
        x = x + mixed.reshape(x.shape) @ p["mix"]
        return x + jax.nn.gelu(normed(x, p["layer"]) @ p["up"]) @ p["down"], None

    def apply(params, tokens):
        x = params["token"][tokens] + params["position"][: tokens.shape[1]]
        names = ("attention", "in", "mix", "layer", "up", "down")
        x, _ = jax.lax.scan(block, x, {name: params[name] for name in names})
        return normed(x, params["end"]) @ params["token"].T

    return init, apply


def normed(x, scale):
    """Layer norm without a bias."""
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return scale * x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-5)


def windows(starts, context):
    """Letters of the text from given positions on, and the letter that follows each."""
    text = resources.files("dlf_dynamics.data").joinpath("sonnets.txt").read_text("utf-8")
    codes = np.searchsorted(sorted(set(text)), list(text))
    starts = starts % (len(text) - context)
    found = codes[starts[:, None] + np.arange(context + 1)]
    return jnp.asarray(found[:, :-1]), jnp.asarray(found[:, 1:])


def setup(examples=8, context=64, size=SIZE):
    """Problem, with examples spread over the text, no optimizer, and initial parameters."""
    init, apply = gpt(context=context, **size)
    data = windows(np.arange(examples) * 10_007, context)
    problem = Problem(apply, MeanOverPositions(cross_entropy), *data)
    return problem, None, init(jax.random.key(0))


def main(path="gpt.h5", steps=201, optimizer=OPTIMIZER, **options):
    """Trains on mini-batches; returns the top of the Hessian's spectrum after the last step."""
    problem, _, params = setup(**options)
    opt_state, update = optimizer.init(params), jax.jit(optimizer.update)
    loss_and_gradient = jax.jit(jax.value_and_grad(Problem.objective, argnums=1))
    rng, shape = np.random.default_rng(0), problem.inputs.shape
    with Recorder(path, problem, optimizer=None, every=50, overwrite=True) as run:
        for step in range(steps):
            inputs, targets = windows(rng.integers(10**9, size=shape[0]), shape[1])
            batch = replace(problem, inputs=inputs, targets=targets)
            loss, gradient = loss_and_gradient(batch, params, step)
            run.record(step, params, loss=loss)
            changes, opt_state = update(gradient, opt_state, params)
            params = optax.apply_updates(params, changes)
    return top_hessian(problem, params, 3, tol=0.01)


if __name__ == "__main__":
    found = main()
    for value, (low, high), status in zip(
        found.eigenvalues, found.intervals, found.status, strict=True
    ):
        print(f"{value:.4g} in [{low:.4g}, {high:.4g}], {status}")
    print(found.message)
