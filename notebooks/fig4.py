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
# # Bifurcations in a dynamical loss: Figure 4 reproduced
#
# Ruiz-Garcia, Zhang, Schoenholz and Liu (ICML 2021, arXiv 2102.03793) emphasise the classes of a
# classification problem in turn: the weight of one class in the loss rises and falls, then that
# of the next. Gradient descent on such a loss reaches its stability threshold again and again, and
# oscillates there: with period 2, in places with 4 or 8, and for much of the time irregularly. On
# this network the oscillation does not wait for the threshold: in the first six bursts it begins
# hundreds of steps before the curvature crosses it. This notebook trains their headline run, and
# computes what their updated program leaves out: Hessian and NTK spectra along it.
# `docs/reproduction/fig4.md` compares our numbers with the published ones.

# %%
# %matplotlib inline
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import jax

jax.config.update("jax_enable_x64", True)

import numpy as np
from matplotlib import pyplot as plt

from dlf_dynamics import PRESETS, train
from dlf_dynamics.analysis import compute_spectrum
from dlf_dynamics.analysis.spectra import plots
from dlf_dynamics.config import SpectrumConfig

# The whole run has 70,000 steps and takes about a minute; 10,000 show its first two bursts.
STEPS = int(os.environ.get("FIG4_STEPS", "70000"))
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## The loss
#
# With class weights Γ_i(t) that sum to the number of classes, the loss of step t is
#
#     F(θ, t) = (1/N) Σ_n Γ_{y_n}(t) ℓ(f(x_n; θ), y_n)
#
# The weight of the emphasised class rises to A = 70, before the weights are normalised, and falls
# again within T = 5000 steps; a network of one hidden layer learns a spiral of three arms.

# %%
config = replace(PRESETS["published"], steps=STEPS)
run = train(config, folder / "fig4.h5")
print(f"{run.status}: {run.steps[-1]} updates, {len(run.checkpoint_steps)} checkpoints")

# %% [markdown]
# ## Spectra, threshold, crossings
#
# Every 25 steps, we compute the largest Hessian eigenvalue of the loss of *that* step, with its
# interval, and the NTK of the first 50 examples. Gradient descent with learning rate η is unstable
# where λ_max > 2/η, here 2.

# %%
spectrum = compute_spectrum(run, SpectrumConfig(every=1 if STEPS > 20_000 else 4))
plots.run_figure(run, spectrum)

# %% [markdown]
# Each eigenvalue has a residual from a fresh product, and an upper bound from a random chain, which
# fails with a probability of one in a million. Values without such a certificate are counted here.

# %%
hessian = spectrum.hessian
worst = np.nanmax(hessian.centre.residuals / np.abs(hessian.centre.eigenvalues[:, :1]))
print(f"largest residual, relative to the largest eigenvalue: {worst:.1e}")
print(f"not converged: {spectrum.not_converged} of {len(hessian.steps)} checkpoints")

# %% [markdown]
# ## Crossing is not onset
#
# On a ReLU network the oscillation does not wait for the threshold: units switch from step to
# step, and at each switch the gradient jumps, which no Hessian contains. So crossings and
# oscillations are separate facts, and the lag between them can be negative.

# %%
for burst in spectrum.bursts:
    print(
        f"oscillates from step {burst.onset:5d} to {burst.end:5d}, seen in the loss from "
        f"{burst.burst_start:5d}, threshold crossed after step {burst.crossed}"
    )

# %% [markdown]
# ## The bifurcation diagram of the run
#
# The loss against the step inside the pulse. Consecutive steps lie on separate branches: two for
# period 2, four for period 4, then a cloud.

# %%
plots.bifurcation_figure(run, spectrum)

# %% [markdown]
# ## Curvature depends on the parity of the step
#
# On an orbit of period 2 the two ends have different curvature, and checkpoints at even steps show
# only one of them. The centre ¼θ_(t-1) + ½θ_t + ¼θ_(t+1) averages the oscillation out.

# %%
last = min(STEPS, 10_000)
inside = (hessian.steps > 8_000) & (hessian.steps < last)
figure, ax = plt.subplots(figsize=(7, 3))
ax.plot(hessian.steps[inside], hessian.iterate.eigenvalues[inside, 0], ".", label="iterate")
ax.plot(hessian.steps[inside], hessian.centre.eigenvalues[inside, 0], ".", label="1:2:1 centre")
ax.plot(hessian.steps[inside], spectrum.thresholds[inside], label="threshold")
ax.set_xlabel("step")
ax.set_ylabel("largest Hessian eigenvalue")
ax.legend()
plt.show()
