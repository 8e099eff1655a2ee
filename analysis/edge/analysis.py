"""`dlf-dynamics edge`, as an analysis of the registry."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from dlf_dynamics.analysis.pipeline import Analysis, View, Work
from dlf_dynamics.config import EdgeConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

    from dlf_dynamics.analysis.edge.edge import Edge
    from dlf_dynamics.analysis.report.content import Part
    from dlf_dynamics.run import Run


class EdgeAnalysis(Analysis[EdgeConfig, "Edge"]):
    """Tell where the updates of mini-batches lose stability in mean square, along a run.

    At some checkpoints: the learning rate η_ms from which on second moments of a small deviation
    grow, where batches are drawn independently, between two certified ones; the learning rate of
    the step over it; the largest eigenvalues of GGN and Hessian of all examples beside the
    threshold of full-batch updates; and batch sharpness, a measurement. Beside them stands what the
    steps of the run realized. For shuffled epochs η_ms is a reference: they are more stable.
    RUN.h5 is not changed; the result goes to RUN.edge.h5, the figure to RUN.edge.png and the same
    as SVG. Ctrl-C stops after the current part; --resume goes on from there.

      dlf-dynamics edge run.h5
      dlf-dynamics edge run.h5 --batch-size 8 --checkpoints 5
    """

    name = "edge"
    config = EdgeConfig
    keys: ClassVar[dict[str, str]] = {
        "run_id": "id of the run",
        "run": "its status, last step and number of checkpoints when it was analysed",
        "config": "settings",
        "batches": "the batches that are asked about",
        "is_threshold": "whether the run draws them so that its threshold is the one told",
        "reference": "why it is a reference and no threshold of the run; empty where it is one",
        "preconditioned": "whether curvatures are those of P^-1 H, with P frozen",
        "full_batch": "what the threshold of full-batch updates is, or why there is none",
        "realized_edge": "steps of the run by their realized edge",
        "verdict": "`below`, `above` or `undecided`, as `check` tells it",
        "because": "lines that say why",
        "points": "a list of `EdgePoint`, field by field",
        "crossings": "a list of `EdgeCrossing`, field by field",
    }

    def result_type(self) -> type[Edge]:
        """`Edge`."""
        from dlf_dynamics.analysis.edge.edge import Edge

        return Edge

    def compute(self, run: Run, config: EdgeConfig, work: Work) -> Edge:
        """Both eigenvalues at all checkpoints, then what belongs to the batches at each."""
        from dlf_dynamics.analysis.edge.edge import compute_edge

        return compute_edge(run, config, parts=work.parts, progress=work.progress)

    def total(self, run: Run, config: EdgeConfig) -> int:
        """Checkpoints, three times."""
        from dlf_dynamics.analysis.edge.batches import batches_of
        from dlf_dynamics.analysis.edge.edge import OPERATORS, chosen_checkpoints

        batches_of(run, config)
        return (len(OPERATORS) + 1) * len(chosen_checkpoints(run, config))

    def lines(self, run: Run | None, found: Edge) -> list[str | Table]:
        """The checkpoints as a table, and what it rests on."""
        from dlf_dynamics.analysis.edge import summary

        return [summary.points_table(found), *summary.closing_lines(found)]

    def as_dict(self, found: Edge) -> dict[str, Any]:
        """The checkpoints and what they rest on."""
        from dlf_dynamics.analysis.edge import summary

        return summary.as_dict(found)

    def json_type(self) -> Any:
        """`EdgeDict`."""
        from dlf_dynamics.analysis.edge.jsontypes import EdgeDict

        return EdgeDict

    def figures(self, run: Run, found: Edge, view: View) -> Iterator[tuple[str, Figure]]:
        """η over its threshold, curvatures, and realized edges against the step."""
        from dlf_dynamics.analysis.edge.plots import edge_figure

        yield "edge", edge_figure(run, found)

    def report(self, run: Run, found: Edge) -> Part:
        """The same words and table, and the checkpoints along the run."""
        from dlf_dynamics.analysis.edge.report import edge_part

        return edge_part(found, self.lines(run, found))
