"""`dlf-dynamics flow`, as an analysis of the registry."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dlf_dynamics.analysis.pipeline import Analysis, Implementation, View
from dlf_dynamics.config import FlowConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dlf_dynamics.analysis.flow.flow import Flow
    from dlf_dynamics.analysis.report.content import Part
    from dlf_dynamics.run import Run


class FlowAnalysis(Analysis[FlowConfig, "Flow"]):
    """Hold the central flow and other theories of the edge of stability against a run.

    The central flow (Cohen and others 2024) is what the iterates do on average while they
    oscillate. It starts at the run's own centre, is integrated without looking at the run again,
    and is compared with the replayed steps: loss, sharpness at the centres, energy and covariance
    of the oscillation, distance of the centres. So are the rod equation, the amplitude of the flip,
    the linear and the quadratic model about the start, and self-stabilization. Where the theory
    does not apply (before the oscillation has grown, at kinks, at period 4, where the oscillation
    is not small), nothing counts as agreement, and the figure is grey. RUN.h5 is not changed; the
    result goes to RUN.flow.h5, the figure to RUN.flow.png and the same as SVG. Ctrl-C stops within
    seconds; --resume goes on from the last start that was finished.

      dlf-dynamics flow run.h5 --steps 9300:9900
      dlf-dynamics flow run.h5 --steps 9300:9900 --restart-every 100
    """

    name = "flow"
    needs_run = False
    config = FlowConfig

    def implementation(self) -> Implementation[FlowConfig, Flow]:
        """The run at each look, and the theories from each start on."""
        from dlf_dynamics.analysis.flow import flow, jsontypes, summary

        return Implementation(flow.Flow, flow.compute_flow, flow.units, summary, jsontypes.FlowDict)

    def figures(self, run: Run | None, found: Flow, view: View) -> Iterator[tuple[str, Figure]]:
        """Measured and predicted against the step; with several starts, errors ahead of them."""
        from dlf_dynamics.analysis.flow.plots import ahead_figure, flow_figure

        yield "flow", flow_figure(found)
        if len(found.segments) > 1 and found.errors:
            yield "flow-ahead", ahead_figure(found)

    def report(self, run: Run, found: Flow) -> Part:
        """The same words and tables, and the panels."""
        from dlf_dynamics.analysis.flow.report import flow_part

        return flow_part(found, self.lines(run, found))
