"""`dlf-dynamics explain`, as an analysis of the registry."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from dlf_dynamics.analysis.pipeline import Analysis, Implementation, View
from dlf_dynamics.config import ExplainConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dlf_dynamics.analysis.explanations.explanation import Explanations
    from dlf_dynamics.analysis.report.content import Part
    from dlf_dynamics.run import Run


class ExplainAnalysis(Analysis[ExplainConfig, "Explanations"]):
    """Say why a run did what it did at one step.

    One paragraph and one figure: the side of the threshold on which the step is, and how certain
    that is; the parameters and classes of its top eigenvector; the oscillation in which it lies,
    with period, lag and size, measured and predicted; the gates of a network with ReLU that flip,
    and what they change; and the multipliers of the updates that were made. Crossings and
    oscillations come from RUN.bifurcations.h5 if that is of the run as it is now, else from the
    steps around, which are replayed. RUN.h5 is not changed; the result goes to RUN.explain.h5,
    which keeps the steps that were explained before, the figure to RUN.explain-STEP.png and the
    same as SVG. Ctrl-C stops after the current part; --resume goes on from there.

      dlf-dynamics explain run.h5 --step 9700
    """

    name = "explain"
    needs_run = False
    config = ExplainConfig

    def implementation(self) -> Implementation[ExplainConfig, Explanations]:
        """One step, in stages."""
        from dlf_dynamics.analysis.explanations import summary
        from dlf_dynamics.analysis.explanations.explanation import Explanations, explain, units
        from dlf_dynamics.analysis.explanations.jsontypes import ExplanationsDict

        return Implementation(Explanations, explain, units, summary, ExplanationsDict)

    def joined(
        self, before: Callable[[], Explanations | None], found: Explanations
    ) -> Explanations:
        """Adds the other steps that are on file."""
        from dlf_dynamics.analysis.explanations.explanation import added

        return added(before(), found)

    def figures(self, run: Run, found: Explanations, view: View) -> Iterator[tuple[str, Figure]]:
        """One for each step, named after it."""
        from dlf_dynamics.analysis.explanations.plots import explanation_figure

        for one in found.explanations:
            yield f"explain-{one.step}", explanation_figure(one)

    def report(self, run: Run, found: Explanations) -> Part:
        """The paragraphs, and the projections on the modes around the steps."""
        from dlf_dynamics.analysis.explanations.report import explanation_part

        return explanation_part(found, self.lines(run, found))
