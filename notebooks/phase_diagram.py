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
# # Where a dynamical loss helps: a phase diagram
#
# Ruiz-Garcia, Zhang, Schoenholz and Liu (ICML 2021, arXiv 2102.03793) asked at which amplitudes A
# and periods T a dynamical loss function trains a network better than the static one. This
# notebook runs a small study of that kind on their spiral: a grid of A and T, a few seeds, the
# accuracy on fresh points from the same distribution, and the instabilities on the way.

# %%
# %matplotlib inline
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import jax

jax.config.update("jax_enable_x64", True)

import numpy as np

from dlf_dynamics import PRESETS
from dlf_dynamics.analysis.studies.phase_diagram import phase_diagram
from dlf_dynamics.analysis.studies.study import Measures, Study
from dlf_dynamics.analysis.studies.study_plots import draw_curves, draw_phase_diagram
from dlf_dynamics.analysis.studies.sweep import sweep

# 10,000 steps for each of 36 runs take about a minute on two cores.
STEPS = int(os.environ.get("PHASE_STEPS", "10000"))
SEEDS = int(os.environ.get("PHASE_SEEDS", "3"))
PROCESSES = int(os.environ.get("PHASE_PROCESSES", "0"))
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## The study
#
# All runs share a base, here the published network; axes are keys of the configuration, written as
# in a TOML file. The last tenth of each run is static, so that accuracies are not measured while
# one class weighs most.

# %%
base = PRESETS["published-updated"]
base = replace(
    base,
    steps=STEPS,
    data=replace(base.data, validation=3000),
    schedule=replace(base.schedule, static_from=STEPS - STEPS // 10, counting="exact"),
)
study = Study(
    base,
    axes=(
        ("schedule.amplitude", (1.0, 10.0, 70.0)),
        ("schedule.period", (50, 200, 800, 3200)),
        ("model.seed", tuple(range(SEEDS))),
    ),
    measures=Measures(curve_points=60, sharpness=True),
)
results = sweep(study, folder / "study.h5", processes=PROCESSES)
print(f"{len(study)} runs, {results.statuses.count('complete')} complete")

# %% [markdown]
# ## Accuracy on fresh points
#
# The static loss has a separate row. Its runs do not depend on the period; each counts once.

# %%
diagram = phase_diagram(results, "validation_accuracy")
draw_phase_diagram(diagram)

# %%
best = np.unravel_index(np.nanargmax(diagram.mean), diagram.mean.shape)
print(
    f"static: {diagram.static[best[1]]:.3f} ± {diagram.static_error[best[1]]:.3f}; best: "
    f"{diagram.mean[best]:.3f} ± {diagram.standard_error[best]:.3f} "
    f"at A = {diagram.y[best[0]]:g}, T = {diagram.x[best[1]]:g}"
)

# %% [markdown]
# ## What the network goes through
#
# Slow strong oscillations of the loss carry the network across the stability threshold again and
# again. The number of windows in which successive updates point against each other:

# %%
draw_phase_diagram(phase_diagram(results, "instabilities"))

# %% [markdown]
# Static loss and sharpness along the runs of one period; the sharpness is that of the loss as it is
# weighted at each step.

# %%
draw_curves(
    results,
    ["static_loss", "sharpness"],
    by=["schedule.amplitude"],
    fixed={"schedule.period": 800},
)
