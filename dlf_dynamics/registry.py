"""The analyses of a run: a line for each, from which its command and all else follow."""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """An analysis.

    Attributes:
        declared: its `pipeline.Analysis`, as module:class.
        about: what it does, in a sentence, for the list of commands.
    """

    declared: str
    about: str


ANALYSES = {
    "spectrum": Entry(
        "dlf_dynamics.analysis.spectra.analysis:SpectrumAnalysis",
        "Compute Hessian and NTK spectra along a run, the threshold, its crossings, and the "
        "figures.",
    ),
    "bifurcations": Entry(
        "dlf_dynamics.analysis.instabilities.analysis:BifurcationAnalysis",
        "Find when, why and how a run became unstable.",
    ),
}
"""By the name of the command, in the order in which they are listed and drawn."""
