"""`dlf-dynamics bifurcations`, as an analysis of the registry."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from dlf_dynamics.analysis.pipeline import Analysis, View, Work
from dlf_dynamics.config import BifurcationConfig
from dlf_dynamics.streams import say

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame
    from rich.table import Table

    from dlf_dynamics.analysis.instabilities.bifurcations import Bifurcations
    from dlf_dynamics.analysis.report.content import Part
    from dlf_dynamics.run import Run


class BifurcationAnalysis(Analysis[BifurcationConfig, "Bifurcations"]):
    """Find when, why and how a run became unstable.

    The steps are replayed from the checkpoints. Crossings of the threshold by the sharpness at the
    centres are located to the step; oscillations get onset, end, period, the lag and growth that
    the linear theory predicts beside those measured, the flip coefficient and the size that it and
    the rod equation predict. RUN.h5 is not changed; the results go to RUN.bifurcations.h5, the
    figures to RUN.instabilities.png and RUN.diagrams.png: the
    oscillations of the run, and orbit diagrams with the loss frozen at one step; and the same as
    SVG. With --pulses or --cycles, the growth of perturbations over each pulse or cycle, and
    Floquet multipliers where its orbit closes, go there too, and to RUN.pulses.png; with --plane,
    curves of bifurcations in two parameters of the frozen loss, and to RUN.plane.png. Ctrl-C stops
    after the current part; --resume goes on from there.

      dlf-dynamics bifurcations run.h5 --steps 8000:10500
    """

    name = "bifurcations"
    needs_run = False
    config = BifurcationConfig
    keys: ClassVar[dict[str, str]] = {
        "run_id": "id of the run",
        "run": "its status, last step and number of checkpoints when it was analysed",
        "config": "settings",
        "threshold": "what it is, or why there is none",
        "replay": "how closely the replayed steps meet the checkpoints",
        "steps": "the first and the last",
        "looked_at": "number of steps at which the sharpness was computed",
        "not_looked_at": "number of the other steps",
        "not_converged": "steps looked at whose sharpness did not converge",
        "verdict": "`below`, `above` or `undecided`, as `check` tells it",
        "because": "lines that say why",
        "instabilities_known": "false for mini-batches, whose noise alone alternates",
        "crossings": "of the centres, a list of `Crossing`, field by field",
        "instabilities": "a list of `Instability`, field by field, with `lag`, onset less crossing",
        "directions": "a list of `UnstableDirection`, those of each onset, field by field",
        "pulse_maps": "a list of `PulseMap`, field by field but for `directions`, multipliers as "
        "pairs of real and imaginary part; empty without --pulses and --cycles",
        "plane": "a `Plane`, field by field, critical multipliers as pairs of real and imaginary "
        "part; null without --plane",
        "edge": "of mini-batches, what `edge --json` prints; null of full batches",
    }

    def result_type(self) -> type[Bifurcations]:
        """`Bifurcations`."""
        from dlf_dynamics.analysis.instabilities.bifurcations import Bifurcations

        return Bifurcations

    def compute(self, run: Run, config: BifurcationConfig, work: Work) -> Bifurcations:
        """The motion, crossings and oscillations of the steps that are asked for."""
        from dlf_dynamics.analysis.instabilities.bifurcations import compute_bifurcations

        return compute_bifurcations(run, config, parts=work.parts, progress=work.progress)

    def total(self, run: Run, config: BifurcationConfig) -> int:
        """Steps, and once more those of the pulses whose maps are computed."""
        from dlf_dynamics.analysis.instabilities.bifurcations import span_of_steps
        from dlf_dynamics.analysis.instabilities.pulse_maps import chosen_pulses, steps_of

        start, end = span_of_steps(run, config)
        return end - start + steps_of(run, chosen_pulses(run, config))

    def joined(
        self, before: Callable[[], Bifurcations | None], found: Bifurcations
    ) -> Bifurcations:
        """With maps of pulses and the plane that are on file and were not asked for anew."""
        from dlf_dynamics.analysis.instabilities.kept import with_kept

        kept = with_kept(before(), found)
        for line in kept.lines:
            say(line)
        return kept.found

    def lines(self, run: Run | None, found: Bifurcations) -> list[str | Table]:
        """The instabilities and the maps of pulses as tables, and what all rests on."""
        from dlf_dynamics.analysis.edge.summary import points_table
        from dlf_dynamics.analysis.instabilities import plane_summary, pulse_summary, summary

        tables = [summary.instabilities_table(found)]
        if found.edge is not None:
            tables = [points_table(found.edge)]
        if found.pulse_maps:
            tables.append(pulse_summary.pulses_table(found.pulse_maps))
        lines = [
            *summary.closing_lines(found),
            *pulse_summary.pulse_lines(found.pulse_maps),
            *pulse_summary.missing_lines(found.config, found.pulse_maps),
        ]
        return [*tables, *lines, *plane_summary.plane_lines(found.plane)]

    def as_dict(self, found: Bifurcations) -> dict[str, Any]:
        """The instabilities and what they rest on."""
        from dlf_dynamics.analysis.instabilities import summary

        return summary.as_dict(found)

    def json_type(self) -> Any:
        """`BifurcationsDict`."""
        from dlf_dynamics.analysis.instabilities.jsontypes import BifurcationsDict

        return BifurcationsDict

    def figures(self, run: Run, found: Bifurcations, view: View) -> Iterator[tuple[str, Figure]]:
        """The oscillations of the run, diagrams with the loss frozen, maps of pulses, the plane."""
        from dlf_dynamics.analysis.instabilities.plane_plots import plane_figure
        from dlf_dynamics.analysis.instabilities.plots import diagram_figure, instability_figure
        from dlf_dynamics.analysis.instabilities.pulse_plots import pulse_figure

        if found.instabilities:
            yield "instabilities", instability_figure(found)
        if found.diagrams:
            yield "diagrams", diagram_figure(found)
        if found.pulse_maps:
            yield "pulses", pulse_figure(found)
        if found.plane is not None and found.plane.curves:
            yield "plane", plane_figure(found.plane)
        if not (found.instabilities or found.diagrams):
            say("no figure of instabilities: the run does not oscillate in these steps")

    def report(self, run: Run, found: Bifurcations) -> Part:
        """The same words and tables, the motion along the run, and the diagrams."""
        from dlf_dynamics.analysis.instabilities.report import bifurcation_part

        return bifurcation_part(found, self.lines(run, found))

    def frames(self, found: Bifurcations) -> dict[str, DataFrame]:
        """Instabilities first, then crossings, the sharpness with its thresholds, and all else."""
        from dlf_dynamics.frames import frame_of, frames_of, scope_of
        from dlf_dynamics.labels import Field

        groups = self.groups(found)
        whole, motion = (next(g for g in groups if g.path == path) for path in ("", "motion/"))
        every = frames_of(groups, leave_out=("",))
        words = {-1: "below", 0: "unknown", 1: "above"}
        side = Field(found.sides, ("looked",), description="of the threshold", words=words)
        fields = {**motion.fields, "threshold": whole.fields["thresholds"], "side": side}
        every["motion.looked"] = frame_of(fields, scope_of(groups, motion.path), ("looked",))
        return {name: every[name] for name in ("instabilities", "crossings")} | every
