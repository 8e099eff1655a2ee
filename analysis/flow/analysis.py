"""`dlf-dynamics flow`, as an analysis of the registry."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from dlf_dynamics.analysis.pipeline import Analysis, View, Work
from dlf_dynamics.config import FlowConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

    from dlf_dynamics.analysis.flow.flow import Flow
    from dlf_dynamics.analysis.report.content import Part
    from dlf_dynamics.run import Run


class FlowAnalysis(Analysis[FlowConfig, "Flow"]):
    """Hold the central flow and other theories of the edge of stability against a run.

    The central flow (Cohen and others 2024) is what the iterates do on average while they
    oscillate. It starts at the run's own centre, is integrated without looking at the run again,
    and is compared with the replayed steps: loss, sharpness at the centres, energy and covariance
    of the oscillation, distance of the centres. Beside it stand the rod equation, the amplitude of
    the flip, the linear and the quadratic model about the start, and self-stabilization. Where the
    run is not what the theory is of (before the oscillation has grown, at kinks, at period 4, where
    the oscillation is not small), nothing counts as agreement, and the figure is grey. RUN.h5 is
    not changed; the result goes to RUN.flow.h5, the figure to RUN.flow.png and the same as SVG.
    Ctrl-C stops after the current start; --resume goes on from there.

      dlf-dynamics flow run.h5 --steps 9300:9900
      dlf-dynamics flow run.h5 --steps 9300:9900 --restart-every 100
    """

    name = "flow"
    needs_run = False
    config = FlowConfig
    keys: ClassVar[dict[str, str]] = {
        "run_id": "id of the run",
        "run": "its status, last step and number of checkpoints when it was analysed",
        "config": "settings",
        "threshold": "what it is",
        "replay": "how closely the replayed steps meet the checkpoints",
        "steps": "the first and the last",
        "looks": "number of steps at which run and theories were compared",
        "counted": "number of them that count: the theory may be applied there, and at all looks "
        "since its start",
        "outside": "number of looks outside of it by the rule that says so",
        "errors": "a list of `TheoryError`, field by field",
        "observed": "the run at each look, field by field",
        "segments": "a list, one for each start of the theories, with what they predict at the "
        "looks from `first` on",
    }

    def result_type(self) -> type[Flow]:
        """`Flow`."""
        from dlf_dynamics.analysis.flow.flow import Flow

        return Flow

    def compute(self, run: Run, config: FlowConfig, work: Work) -> Flow:
        """Each segment, from its start on."""
        from dlf_dynamics.analysis.flow.flow import compute_flow

        return compute_flow(run, config, parts=work.parts, progress=work.progress)

    def total(self, run: Run, config: FlowConfig) -> int:
        """Steps, twice."""
        from dlf_dynamics.analysis.flow.flow import chosen_span

        start, stop = chosen_span(run, config)
        return 2 * (stop - start)

    def lines(self, run: Run | None, found: Flow) -> list[str | Table]:
        """What counts and what does not, and how far each theory is off."""
        from dlf_dynamics.analysis.flow import summary

        return summary.lines(found)

    def as_dict(self, found: Flow) -> dict[str, Any]:
        """All that was measured and predicted."""
        from dlf_dynamics.analysis.flow import summary

        return summary.as_dict(found)

    def json_type(self) -> Any:
        """`FlowDict`."""
        from dlf_dynamics.analysis.flow.jsontypes import FlowDict

        return FlowDict

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
