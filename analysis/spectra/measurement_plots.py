"""The figure of a measurement at one point: eigenvalues, their intervals, and the threshold."""

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


def measurement_figure(measured: Measurement | ParameterEigenpairs | KernelSpectrum) -> Figure:
    """Each eigenvalue in its interval; those that did not converge are hollow.

    Args:
        measured: result of the measurement.
    """
    if isinstance(measured, Measurement):
        values, intervals = np.array([measured.value]), np.array([measured.interval])
        converged = np.array([measured.converged])
    else:
        values, intervals, converged = measured.eigenvalues, measured.intervals, measured.converged
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
        if isinstance(measured, Stability) and np.isfinite(measured.threshold):
            ax.axhline(measured.threshold, color=COLOURS[5], linestyle="--", label="threshold")
            ax.set_title(drawable(f"{measured.verdict}: {measured.label}", 60), fontsize="medium")
        ax.set(xlabel="number, from the largest", ylabel="λ", xlim=(0.5, len(values) + 0.5))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend()
    return figure
