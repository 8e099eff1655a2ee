"""`dlf-dynamics bifurcations`, as an analysis of the registry."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from dlf_dynamics.analysis.pipeline import Analysis, Implementation, View
from dlf_dynamics.config import BifurcationConfig
from dlf_dynamics.streams import say

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

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

    def implementation(self) -> Implementation[BifurcationConfig, Bifurcations]:
        """The motion, crossings and oscillations of the replayed steps."""
        from dlf_dynamics.analysis.instabilities import bifurcations, jsontypes, summary

        compute, json_type = bifurcations.compute_bifurcations, jsontypes.BifurcationsDict
        return Implementation(bifurcations.Bifurcations, compute, self._total, summary, json_type)

    def _total(self, run: Run, config: BifurcationConfig) -> int:
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
