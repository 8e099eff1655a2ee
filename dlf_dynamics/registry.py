"""The analyses of a run: a line for each, from which its command and all else follow."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple


class Entry(NamedTuple):
    """An analysis, or a command.

    Attributes:
        declared: its class, as module:class: of an analysis a `pipeline.Analysis`.
        about: what it does, in a sentence, for the list of commands.
    """

    declared: str
    about: str

    def loaded(self) -> Any:
        """The class, once its module is imported."""
        module, _, kind = self.declared.partition(":")
        return getattr(importlib.import_module(module), kind)


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
