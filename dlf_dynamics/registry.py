"""The analyses of a run: one entry each, from which its command and everything else follow."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple


class Entry(NamedTuple):
    """An analysis, or a command.

    Attributes:
        declared: class as module:class; the class of an analysis is a `pipeline.Analysis`.
        about: one sentence for the list of commands.
    """

    declared: str
    about: str = ""

    def loaded(self) -> Any:
        """Imports and returns the class."""
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
    "edge": Entry(
        "dlf_dynamics.analysis.edge.analysis:EdgeAnalysis",
        "Tell where the updates of mini-batches lose stability in mean square, along a run.",
    ),
    "flow": Entry(
        "dlf_dynamics.analysis.flow.analysis:FlowAnalysis",
        "Hold the central flow and other theories of the edge of stability against a run.",
    ),
    "explain": Entry(
        "dlf_dynamics.analysis.explanations.analysis:ExplainAnalysis",
        "Say why a run did what it did at one step.",
    ),
}
"""Analyses by the names of their commands, in the order of lists and figures."""

_TELLERS = {
    "run": Entry("dlf_dynamics.analysis.tellers:RunTeller"),
    "study": Entry("dlf_dynamics.analysis.tellers:StudyTeller"),
    "measurement": Entry("dlf_dynamics.analysis.tellers:MeasurementTeller"),
}

FIGURES = Entry("dlf_dynamics.analysis.style:Figures")
"""Figures by name, as `Shown.plot` returns them."""


def teller_entry(name: str) -> Entry:
    """The `shown.Teller` of a kind of result: its analysis, or one for results without analysis."""
    return ANALYSES[name] if name in ANALYSES else _TELLERS[name]
