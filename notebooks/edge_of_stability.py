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
# # The edge of stability on your own data
#
# Full-batch gradient descent raises the sharpness, the largest eigenvalue of the Hessian, until it
# reaches 2/η, and then keeps it there (Cohen et al. 2021, arXiv 2103.00065). Replace the synthetic
# data by your own to see whether and when your network does.

# %%
# %matplotlib inline
import os
import tempfile
from pathlib import Path

import jax

jax.config.update("jax_enable_x64", True)

import numpy as np
from matplotlib import pyplot as plt

from dlf_dynamics import DataConfig, ModelConfig, OptimizerConfig, RunConfig, train
from dlf_dynamics.analysis import compute_spectrum
from dlf_dynamics.config import LossConfig, ScheduleConfig, SpectrumConfig

STEPS = int(os.environ.get("EDGE_STEPS", "4000"))
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## Data
#
# An `.npz` file with `inputs` and integer `labels`, and the same for validation examples.

# %%
generator = np.random.default_rng(0)


def rings(count):
    """Points on two rings that no straight line separates."""
    labels = np.arange(count) % 2
    angle = generator.uniform(0, 2 * np.pi, count)
    radius = 0.5 + 0.5 * labels + 0.1 * generator.normal(size=count)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1), labels


inputs, labels = rings(120)
validation_inputs, validation_labels = rings(400)
np.savez(
    folder / "rings.npz",
    inputs=inputs,
    labels=labels,
    validation_inputs=validation_inputs,
    validation_labels=validation_labels,
)

# %% [markdown]
# ## Training
#
# With the squared error the sharpness stays there; with cross entropy it eventually falls again.

# %%
config = RunConfig(
    data=DataConfig(name="npz", path=str(folder / "rings.npz")),
    model=ModelConfig(widths=(40, 40), activation="tanh", init="glorot-normal"),
    loss=LossConfig(name="squared-error"),
    schedule=ScheduleConfig(name="static"),
    optimizer=OptimizerConfig(learning_rate=0.2),
    steps=STEPS,
    checkpoint_every=20,
)
run = train(config, folder / "rings.h5")
print(f"{run.status}: loss {run.scalars['loss'][-1]:.2e}")
print(f"validation accuracy {run.validation['accuracy'][-1]:.3f}")

# %% [markdown]
# ## Sharpness against the threshold
#
# On an orbit of period 2 the sharpness of odd and even steps differs; the 1:2:1 average of three
# iterates is the centre of the orbit.

# %%
spectrum = compute_spectrum(run, SpectrumConfig(ntk_examples=0))
steps = spectrum.hessian.steps
centre = spectrum.hessian.centre.eigenvalues[:, 0]
iterate = spectrum.hessian.iterate.eigenvalues[:, 0]
figure, axis = plt.subplots(figsize=(8, 4))
axis.plot(steps, iterate, ".", ms=2, color="0.6", label="at the iterate")
axis.plot(steps, centre, label="at the centre of three iterates")
axis.axhline(spectrum.thresholds[0], ls="--", color="k", label=r"$2/\eta$")
axis.set(xlabel="step", ylabel="sharpness", ylim=(0, 1.6 * spectrum.thresholds[0]))
axis.legend()

# %%
ups = [c for c in spectrum.crossings if c.direction == "up" and c.at == "centre"]
if ups:
    print(f"first crossing between steps {ups[0].step_before} and {ups[0].step_after}")
    after = centre[steps > ups[0].step_after + 200] / spectrum.thresholds[0]
    if len(after):
        print(f"from 200 steps later on {after.mean():.3f} of the threshold in the mean")
else:
    print("the threshold was not crossed in these steps")
print("not converged:", int((~spectrum.hessian.centre.converged[:, 0]).sum()))
