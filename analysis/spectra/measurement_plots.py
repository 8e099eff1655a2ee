"""The figure of what was measured at one point: eigenvalues, their intervals, and the threshold."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dlf_dynamics.analysis.spectra.oneshot_results import (
    KernelSpectrum,
    Measurement,
    ParameterEigenpairs,
    Stability,
)
from dlf_dynamics.analysis.style import COLOURS, STYLE
from dlf_dynamics.streams import drawable


def measurement_figure(found: Measurement | ParameterEigenpairs | KernelSpectrum) -> Figure:
    """Each eigenvalue in its interval; those that did not converge are hollow.

    Args:
        found: what was measured.
    """
    if isinstance(found, Measurement):
        values, intervals = np.array([found.value]), np.array([found.interval])
        converged = np.array([found.converged])
    else:
        values, intervals, converged = found.eigenvalues, found.intervals, found.converged
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.0, 3.0), layout="constrained")
        ax = figure.subplots()
        numbers = np.arange(1, len(values) + 1)
        ax.vlines(
            numbers, intervals[:, 0], intervals[:, 1], color=COLOURS[0], linewidth=3, alpha=0.4
        )
        for sure, label in ((True, "eigenvalue"), (False, "Ritz value, not converged")):
            chosen = converged == sure
            face = COLOURS[0] if sure else "none"
            if chosen.any():
                ax.scatter(
                    numbers[chosen],
                    values[chosen],
                    facecolor=face,
                    edgecolor=COLOURS[0],
                    label=label,
                )
        if isinstance(found, Stability) and np.isfinite(found.threshold):
            ax.axhline(found.threshold, color=COLOURS[5], linestyle="--", label="threshold")
            ax.set_title(drawable(f"{found.verdict}: {found.label}", 60), fontsize="medium")
        ax.set(xlabel="number, from the largest", ylabel="λ", xlim=(0.5, len(values) + 0.5))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend()
    return figure
