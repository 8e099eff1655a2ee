"""`dlf-dynamics explain`, as an analysis of the registry."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from dlf_dynamics.analysis.pipeline import Analysis, View, Work
from dlf_dynamics.config import ExplainConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

    from dlf_dynamics.analysis.explanations.explanation import Explanations
    from dlf_dynamics.analysis.report.content import Part
    from dlf_dynamics.run import Run


class ExplainAnalysis(Analysis[ExplainConfig, "Explanations"]):
    """Say why a run did what it did at one step.

    One paragraph and one figure: on which side of the threshold the step is and how certain that
    is; which parameters and classes its top eigenvector is of; in which oscillation it lies, with
    period, lag and size, measured and predicted; which gates of a network with ReLU flip and what
    they change; and the multipliers of the updates that were made. Crossings and oscillations are
    those of RUN.bifurcations.h5 if that is of the run as it is now, else of the steps around, which
    are replayed. RUN.h5 is not changed; the result goes to RUN.explain.h5, beside the steps that
    were explained before, the figure to RUN.explain-STEP.png and the same as SVG. Ctrl-C stops
    after the current part; --resume goes on from there.

      dlf-dynamics explain run.h5 --step 9700
    """

    name = "explain"
    needs_run = False
    config = ExplainConfig
    keys: ClassVar[dict[str, str]] = {
        "run_id": "id of the run",
        "run": "its status, last step and number of checkpoints when it was analysed",
        "explanations": "a list of steps: of the command the one that was asked for, of a file all "
        "in it",
    }

    def result_type(self) -> type[Explanations]:
        """`Explanations`."""
        from dlf_dynamics.analysis.explanations.explanation import Explanations

        return Explanations

    def compute(self, run: Run, config: ExplainConfig, work: Work) -> Explanations:
        """The step that is asked for."""
        from dlf_dynamics.analysis.explanations.explanation import explain

        return explain(run, config, parts=work.parts, progress=work.progress)

    def total(self, run: Run, config: ExplainConfig) -> int:
        """Stages."""
        from dlf_dynamics.analysis.explanations.explanation import STAGES, step_of

        step_of(run, config)
        return STAGES

    def joined(
        self, before: Callable[[], Explanations | None], found: Explanations
    ) -> Explanations:
        """With the other steps that are on file."""
        from dlf_dynamics.analysis.explanations.explanation import added

        return added(before(), found)

    def lines(self, run: Run | None, found: Explanations) -> list[str | Table]:
        """A paragraph for each step."""
        from dlf_dynamics.analysis.explanations import summary

        return list(summary.lines(found))

    def as_dict(self, found: Explanations) -> dict[str, Any]:
        """Each step with its paragraph and its numbers."""
        from dlf_dynamics.analysis.explanations import summary

        return summary.as_dict(found)

    def json_type(self) -> Any:
        """`ExplanationsDict`."""
        from dlf_dynamics.analysis.explanations.jsontypes import ExplanationsDict

        return ExplanationsDict

    def figures(self, run: Run, found: Explanations, view: View) -> Iterator[tuple[str, Figure]]:
        """One for each step, named after it."""
        from dlf_dynamics.analysis.explanations.plots import explanation_figure

        for one in found.explanations:
            yield f"explain-{one.step}", explanation_figure(one)

    def report(self, run: Run, found: Explanations) -> Part:
        """The paragraphs, and the projections on the modes around the steps."""
        from dlf_dynamics.analysis.explanations.report import explanation_part

        return explanation_part(found, self.lines(run, found))
