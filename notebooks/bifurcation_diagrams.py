# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---


# %% [markdown]
# # Bifurcation diagrams
#
# Gradient descent is a map: the parameters after an update as a function of those before. This
# notebook draws how its fixed points and cycles depend on the learning rate, for a double well, for
# a small network, and for the Hénon map, on which the tools can be checked by hand.
#
# Branches are followed by continuation, whether stable or unstable; lines are solid
# where all multipliers are inside the unit circle, otherwise dashed. The orbits behind them were
# iterated, with the parameter swept up (grey) and down again (blue): they show only stable states,
# and differ where two attractors coexist.

# %%
# %matplotlib inline
import os

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from matplotlib import pyplot as plt

from dlf_dynamics.analysis.bifurcation import (
    Map,
    continue_cycle,
    orbit_diagram,
    period_doublings,
    plot_branches,
)

VALUES = int(os.environ.get("BIFURCATION_VALUES", "400"))
SWEEP = {"transient": 1000, "recorded": 64, "kick": 1e-9}

# %% [markdown]
# ## The double well
#
# L(x) = (x² − 1)²/4 has curvature 2 in its minima. The minimum at 1 flips at a learning rate of
# 2/2 = 1; the cycle of period 2 that is born there flips at √5 − 1 = 1.23607, and so on, to an
# accumulation at 1.3023. At 3√3/2 − 1 = 1.598 the attractor leaves its well: from there on the
# sweep up visits both. The sweep down returns to the other well, and stays there.

# %%
well = Map(lambda x, rate: x - rate * x * (x**2 - 1))
span = (0.6, 1.8)
minimum = continue_cycle(well, np.array([1.0]), 0.9, 1, until=span)
branches = period_doublings(well, minimum, until=span, depth=2)
orbits = orbit_diagram(well, jnp.array([1.0]), np.linspace(*span, VALUES), lambda x: x[0], **SWEEP)
_, ax = plt.subplots(figsize=(7, 4))
plot_branches(ax, branches, orbits=orbits)
ax.set_xlabel("learning rate")
ax.set_ylabel("x")
flips = [one for branch in branches for one in branch.bifurcations if one.label == "PD"]
print([round(flip.parameter, 6) for flip in flips])
assert abs(flips[0].parameter - 1) < 1e-9
assert abs(flips[1].parameter - (5**0.5 - 1)) < 1e-9

# %% [markdown]
# ## A flip that jumps
#
# Where the flip coefficient is negative, the cycle of period 2 is born unstable, on the side where
# the fixed point is still stable, and turns at a limit point (LP). Between the two, rest and
# oscillation are both stable: the sweeps differ. The example is the normal form
# −(1 + p) x − x³ + x⁵; its limit point is at p = −1/4.

# %%
jump = Map(lambda x, p: -(1 + p) * x - x**3 + x**5)
span = (-0.3, 0.1)
rest = continue_cycle(jump, np.array([0.0]), -0.2, 1, until=span)
branches = period_doublings(jump, rest, until=span, depth=1)
orbits = orbit_diagram(jump, jnp.array([0.0]), np.linspace(*span, VALUES), lambda x: x[0], **SWEEP)
_, ax = plt.subplots(figsize=(7, 4))
plot_branches(ax, branches, orbits=orbits)
ax.set_xlabel("p")
ax.set_ylabel("x")
different = orbits.parameters[orbits.hysteresis()]
print(f"the sweeps differ from {different[0]:.3f} to {different[-1]:.3f}")

# %% [markdown]
# ## The Hénon map
#
# x ↦ 1 − a x² + y, y ↦ b x with b = 0.3. Its fixed points are born in a limit point at
# a = −(1 − b)²/4 = −0.1225 and flip at a = 3 (1 − b)²/4 = 0.3675; the cycle of period 2 flips at
# a = (1 − b)² + (1 + b)²/4 = 0.9125.

# %%
henon = Map(lambda z, a: jnp.array([1 - a * z[0] ** 2 + z[1], 0.3 * z[0]]))
span = (-0.15, 1.2)
fixed = continue_cycle(henon, np.array([0.6, 0.2]), 0.3, 1, until=span)
branches = period_doublings(henon, fixed, until=span, depth=2)
orbits = orbit_diagram(
    henon, jnp.array([0.6, 0.2]), np.linspace(0, 1.2, VALUES), lambda z: z[0], **SWEEP
)
_, ax = plt.subplots(figsize=(7, 4))
plot_branches(ax, branches, orbits=orbits)
ax.set_xlabel("a")
ax.set_ylabel("x")
ax.set_ylim(-1.6, 3.2)
found = {round(one.parameter, 9) for branch in branches for one in branch.bifurcations}
assert found >= {-0.1225, 0.3675, 0.9125}

# %% [markdown]
# ## A small network
#
# Nine parameters: three tanh units and a linear output learn sin 2x at eight points, by full-batch
# gradient descent on the mean squared error with weight decay, without which minima would not be
# isolated. The figure shows the output at x = 1. The flip is where the learning rate is 2 over the
# sharpness of the minimum.

# %%
inputs = np.linspace(-1, 1, 8)[:, None]
targets = np.sin(2 * inputs)
generator = np.random.default_rng(0)
start, unflatten = ravel_pytree(
    [generator.normal(size=(1, 3)), np.zeros(3), generator.normal(size=(3, 1))]
)


def output(params, x):
    """Of the network, for inputs of shape (examples, 1)."""
    weights, biases, last = unflatten(params)
    return jnp.tanh(x @ weights + biases) @ last


def loss(params):
    """Half the mean squared error, with weight decay."""
    error = output(params, inputs) - targets
    return jnp.mean(error**2) / 2 + 5e-3 * params @ params


network = Map(lambda params, rate: params - rate * jax.grad(loss)(params))
params = network.iterate(start, 0.5, 20000)
flip = 2 / float(np.linalg.eigvalsh(jax.hessian(loss)(params))[-1])
span = (0.7 * flip, 1.3 * flip)
minimum = continue_cycle(network, np.asarray(params), span[0], 1, until=span)
branches = period_doublings(network, minimum, until=span, depth=2)
at_one = lambda state: output(state, jnp.ones((1, 1)))[0, 0]  # noqa: E731
orbits = orbit_diagram(
    network, params, np.linspace(*span, VALUES // 2), at_one, transient=3000, recorded=40, kick=1e-7
)
_, ax = plt.subplots(figsize=(7, 4))
plot_branches(ax, branches, at_one, orbits=orbits)
ax.axvline(flip, color="0.7", lw=0.8, zorder=0)
ax.set_xlabel("learning rate")
ax.set_ylabel("output at x = 1")
first = next(one for one in branches[0].bifurcations if one.label == "PD")
print(f"flip at {first.parameter:.6f}, 2 over the sharpness {flip:.6f}; {first.criticality}")
assert abs(first.parameter - flip) < 1e-6 * flip
