"""Every optimizer that optax exports: its threshold, as the documentation lists it, or the reason.

The thresholds are confirmed by loops that share no code with `dlf_dynamics`: the update itself, on
a quadratic in two parameters.
"""

import functools
import inspect
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib
from optax._src import alias

from dlf_dynamics.analysis.stability.threshold import instability_threshold

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of optax itself
PAGE = Path(__file__).parents[2] / "docs" / "concepts" / "stability.md"
RATE = 0.1
WRAPPERS = {
    "apply_if_finite": lambda: optax.apply_if_finite(optax.sgd(RATE), 3),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(RATE),
    "lookahead": lambda: optax.lookahead(optax.sgd(RATE), 6, 0.5),
    "MultiSteps": lambda: optax.MultiSteps(optax.sgd(RATE), 4).gradient_transformation(),
    "apply_every": lambda: optax.chain(optax.apply_every(4), optax.sgd(RATE)),
}
ARGUMENTS = {
    "noisy_sgd": lambda: optax.noisy_sgd(RATE, key=0),
    "contrib.dpsgd": lambda: contrib.dpsgd(RATE, 1.0, 0.1, 0),
    "contrib.mechanize": lambda: contrib.mechanize(optax.sgd(RATE)),
    "contrib.sam": lambda: contrib.sam(optax.sgd(RATE), optax.sgd(0.01)),
    "contrib.schedule_free": lambda: contrib.schedule_free(optax.sgd(RATE), RATE),
}
PARTS = {  # of optimizers, or about them
    "contrib.differentially_private_aggregate",
    "contrib.hutchinson_estimator_diag_hessian",
    "contrib.normalize",
    "contrib.reduce_on_plateau",
    "contrib.schedule_free_eval_params",
    "contrib.split_real_and_imaginary",
}


def exported():
    """Names and makers of optimizers, from what optax holds."""
    found = dict(WRAPPERS)
    for prefix, module, home in (("", optax, alias.__name__), ("contrib.", contrib, "contrib._")):
        for name, maker in vars(module).items():
            function = maker.func if isinstance(maker, functools.partial) else maker
            place = getattr(function, "__module__", None) or ""
            if not inspect.isfunction(function) or home not in place or "scale_by" in name:
                continue
            full = prefix + name
            if full not in PARTS:
                found[full] = ARGUMENTS.get(full, functools.partial(maker, RATE))
    return found


EXPORTED = exported()


def listed():
    """The rows of the table in the documentation: name to number, operator and reason."""
    rows = re.findall(r"^\| `([\w.]+)` \| (.*?) \| (.*?) \|$", PAGE.read_text(), re.MULTILINE)
    return {name: (number, words) for name, number, words in rows}


LISTED = listed()
KNOWN = [name for name, (number, _) in LISTED.items() if number != "none"]


def test_the_documentation_lists_each_optimizer_of_optax():
    assert LISTED.keys() == EXPORTED.keys()


@pytest.mark.parametrize("name", EXPORTED)
def test_the_documentation_tells_each_threshold_or_the_reason_why_there_is_none(name):
    number, words = LISTED[name]
    optimizer = EXPORTED[name]()
    if number == "none":
        with pytest.raises(ValueError, match=re.escape(f"update {words}")):
            instability_threshold(optimizer, np.array([0, 10, 1000]))
    else:
        found = instability_threshold(optimizer, np.array([0, 10, 1000]))
        np.testing.assert_allclose(found, float(number), rtol=1e-5)


ROOT = 7e12
"""Of the mean squares that divide an update, while they are held."""


def held(state, decay):
    """With the mean squares of Adam and RMSProp held, long after all biases are gone."""

    def one(node):
        if not hasattr(node, "nu"):
            return node
        large = jax.tree.map(lambda x: jnp.full_like(x, ROOT**2 / decay), node.nu)
        node = node._replace(nu=large)
        return node._replace(count=jnp.int32(10**6)) if "count" in node._fields else node

    return jax.tree.map(one, state, is_leaf=lambda node: hasattr(node, "nu"))


@pytest.mark.parametrize("name", KNOWN)
def test_the_update_itself_decays_below_the_threshold_and_grows_above_it(name):
    number, operator = LISTED[name]
    optimizer = EXPORTED[name]()
    unit = ROOT if "P" in operator else 1.0
    decay = 0.9 if name == "rmsprop" else 0.999
    curvatures = jnp.array([0.98, 1.02]) * float(number) * unit
    params = jnp.array([1.0, -1.0]) / curvatures

    @jax.jit
    def step(params, state):
        change, state = optimizer.update(curvatures * params, held(state, decay), params)
        return params + change, state

    state, visited = optimizer.init(params), []
    for _ in range(300):
        params, state = step(params, state)
        visited.append(np.abs(params))
    early, late = np.max(visited[:30], axis=0), np.max(visited[-30:], axis=0)
    assert late[0] < early[0] / 5
    assert late[1] > 5 * early[1]
