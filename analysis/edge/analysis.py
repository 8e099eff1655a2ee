"""`dlf-dynamics edge`, as an analysis of the registry."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dlf_dynamics.analysis.pipeline import Analysis, Implementation, View
from dlf_dynamics.config import EdgeConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dlf_dynamics.analysis.edge.edge import Edge
    from dlf_dynamics.analysis.report.content import Part
    from dlf_dynamics.run import Run


class EdgeAnalysis(Analysis[EdgeConfig, "Edge"]):
    """Tell where the updates of mini-batches lose stability in mean square, along a run.

    At some checkpoints it computes the learning rate η_ms above which second moments of a small
    deviation grow when batches are drawn independently, certified from both sides; the ratio of the
    step's learning rate to it; the largest eigenvalues of GGN and Hessian of all examples, with the
    threshold of full-batch updates; and batch sharpness, a measurement. The realized edges of the
    run's steps are shown with them. For shuffled epochs, which are more stable, η_ms is a
    reference. RUN.h5 is not changed; the result goes to RUN.edge.h5, the figure to RUN.edge.png and
    the same as SVG. Ctrl-C stops after the current part; --resume goes on from there.

      dlf-dynamics edge run.h5
      dlf-dynamics edge run.h5 --batch-size 8 --checkpoints 5
    """

    name = "edge"
    config = EdgeConfig

    def implementation(self) -> Implementation[EdgeConfig, Edge]:
        """Eigenvalues at the checkpoints, and the stability of their batches."""
        from dlf_dynamics.analysis.edge import edge, jsontypes, summary

        return Implementation(edge.Edge, edge.compute_edge, edge.units, summary, jsontypes.EdgeDict)

    def figures(self, run: Run, found: Edge, view: View) -> Iterator[tuple[str, Figure]]:
        """η over its threshold, curvatures, and realized edges against the step."""
        from dlf_dynamics.analysis.edge.plots import edge_figure

        yield "edge", edge_figure(run, found)

    def report(self, run: Run, found: Edge) -> Part:
        """The same words and table, and the checkpoints along the run."""
        from dlf_dynamics.analysis.edge.report import edge_part

        return edge_part(found, self.lines(run, found))
