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
"""By the name of the command, in the order in which they are listed and drawn."""

_TELLERS = {
    "run": Entry("dlf_dynamics.analysis.tellers:RunTeller", "Tells of a run."),
    "study": Entry("dlf_dynamics.analysis.tellers:StudyTeller", "Tells of a study."),
    "measurement": Entry(
        "dlf_dynamics.analysis.tellers:MeasurementTeller", "Tells what was measured at one point."
    ),
}


FIGURES = Entry("dlf_dynamics.analysis.style:Figures", "Figures by name.")
"""Of which `Shown.plot` gives some."""


def teller_entry(name: str) -> Entry:
    """What tells of a kind of result, a `shown.Teller`: its analysis, or one for what has none."""
    return ANALYSES[name] if name in ANALYSES else _TELLERS[name]
