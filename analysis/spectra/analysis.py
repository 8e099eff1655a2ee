"""`dlf-dynamics spectrum`, as an analysis of the registry."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dlf_dynamics.analysis.pipeline import Analysis, Implementation, View
from dlf_dynamics.config import SpectrumConfig
from dlf_dynamics.spans import span_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame
    from rich.table import Table

    from dlf_dynamics.analysis.report.content import Part
    from dlf_dynamics.analysis.spectra.spectrum import Spectrum
    from dlf_dynamics.parts import Parts
    from dlf_dynamics.progress import Advance
    from dlf_dynamics.run import Run


@dataclass(frozen=True)
class SpectrumView(View):
    """What is told and drawn of a spectrum."""

    verify_dense: bool = False
    """Compare every value with a dense eigensolve and print the worst difference (at most 2,000
    parameters; takes about a second for each checkpoint)."""
    zoom: str | None = None
    """Steps a:b of the figure's second column; none means around the second burst."""

    @property
    def window(self) -> tuple[float, float] | None:
        """The steps of the second column."""
        return None if self.zoom is None else span_of(self.zoom, "zoom")

    def __post_init__(self) -> None:
        _ = self.window  # refused before anything is computed


class SpectrumAnalysis(Analysis[SpectrumConfig, "Spectrum"]):
    """Compute Hessian and NTK spectra along a run, the threshold, its crossings, and the figures.

    Eigenvalues are of the loss as it was weighted at each checkpoint's step, at the iterate and at
    the 1:2:1 centre of three consecutive iterates. RUN.h5 is not changed; the results go to
    RUN.spectrum.h5, the figures to RUN.png, RUN.bifurcation.png, with --density RUN.density.png,
    with --infinite-width RUN.kernels.png, and the same as .svg. Ctrl-C stops after the current
    part; press it again to stop immediately. What was finished then, or before a kill, is in
    RUN.spectrum.parts, and --resume goes on from there.

      dlf-dynamics spectrum run.h5 --steps 8000:10500 --verify-dense
      dlf-dynamics spectrum run.h5 --operator ggn --which both --k 5 --density
    """

    name = "spectrum"
    config = SpectrumConfig
    view = SpectrumView
    distributed = True
    follows = True

    def implementation(self) -> Implementation[SpectrumConfig, Spectrum]:
        """NTK, Hessian, densities and limits at the chosen checkpoints, one after the other."""
        from dlf_dynamics.analysis.spectra import jsontypes, spectrum, summary

        json_type = jsontypes.SpectrumDict
        return Implementation(spectrum.Spectrum, self._compute, self._total, summary, json_type)

    def _compute(
        self, run: Run, config: SpectrumConfig, *, parts: Parts, progress: Advance
    ) -> Spectrum:
        """Notes beside the progress bar how long the products will take."""
        from dlf_dynamics.analysis.spectra.spectrum import compute_spectrum
        from dlf_dynamics.progress import ProductMeter

        before, count = self._before(run, config), self._chosen(run, config)
        points = 2 if run.own_updates else 1  # without them there is no centre
        meter = ProductMeter(points * count, config.max_matvecs)

        def told(what: str, done: int) -> None:
            if what == "hessian":
                meter.expect(points * (count - done))
                progress.note("")
            progress(before[what] + done)

        return compute_spectrum(
            run,
            config,
            parts=parts,
            progress=told,
            watch=lambda made: progress.note(meter(made)),
        )

    def _total(self, run: Run, config: SpectrumConfig) -> int:
        """Checkpoints, once for each kind of spectrum."""
        last = self._before(run, config)["infinite-width"]
        return last + self._chosen(run, config) * config.infinite_width

    def _chosen(self, run: Run, config: SpectrumConfig) -> int:
        from dlf_dynamics.analysis.spectra.checkpoints import select_checkpoints

        return len(select_checkpoints(run, config))

    def _before(self, run: Run, config: SpectrumConfig) -> dict[str, int]:
        """Units of the progress bar that come before each kind of spectrum."""
        from dlf_dynamics.analysis.spectra.checkpoints import (
            density_checkpoints,
            select_checkpoints,
        )
        from dlf_dynamics.analysis.spectra.spectrum import DENSITIES

        chosen = select_checkpoints(run, config)
        densities = len(DENSITIES) * len(density_checkpoints(config, chosen)) * config.density
        kernels = len(chosen) if config.ntk_examples and run.problem.has_outputs else 0
        both = kernels + len(chosen)
        return {
            "ntk": 0,
            "hessian": kernels,
            "density": both,
            "infinite-width": both + densities,
        }

    def lines(self, run: Run | None, found: Spectrum) -> list[str | Table]:
        """The events as a table, what they rest on, and what the run has that changes them."""
        from dlf_dynamics.analysis.spectra.summary import saturation_lines

        saturated = [] if run is None else saturation_lines(run, found.hessian.steps)
        return [*super().lines(run, found), *saturated]

    def now(self, found: Spectrum) -> str:
        """The last value beside the threshold, and what has crossed."""
        from dlf_dynamics.analysis.spectra import summary

        return summary.last_line(found)

    def figures(
        self, run: Run, found: Spectrum, view: SpectrumView
    ) -> Iterator[tuple[str, Figure]]:
        """The run with its spectra, its bursts, and what else was asked for."""
        from dlf_dynamics.analysis.spectra import plots

        yield "", plots.run_figure(run, found, view.window)
        if not found.unwatched:
            yield "bifurcation", plots.bifurcation_figure(run, found)
        if found.densities:
            from dlf_dynamics.analysis.spectra.density_plots import density_figure

            yield "density", density_figure(found)
        if found.infinite_width is not None:
            from dlf_dynamics.analysis.spectra.infinite_width_plots import kernel_figure

            yield "kernels", kernel_figure(found)

    def frames(self, found: Spectrum) -> dict[str, DataFrame]:
        """Eigenvalues with their certificates and thresholds first, then all else."""
        from dlf_dynamics.analysis.spectra.table import eigenvalue_table
        from dlf_dynamics.frames import frames_of

        joined = ("", "hessian/", "hessian/iterate/", "hessian/centre/")
        return {"eigenvalues": eigenvalue_table(found), **frames_of(self.groups(found), joined)}

    def without(self, run: Run, view: SpectrumView) -> Iterator[tuple[str, Figure]]:
        """What the run file alone shows."""
        from dlf_dynamics.analysis.spectra import plots

        yield "", plots.run_figure(run, None, view.window)

    def report(self, run: Run, found: Spectrum) -> Part:
        """The same words and tables, and the spectra along the run."""
        from dlf_dynamics.analysis.spectra.report import spectrum_part

        return spectrum_part(found, self.lines(run, found))

    def verify(self, run: Run, found: Spectrum, view: SpectrumView, *, quiet: bool) -> list[str]:
        """Compares every value with a dense eigensolve, if that is asked for."""
        if not view.verify_dense:
            return []
        from dlf_dynamics.analysis.spectra.verification import verify_dense
        from dlf_dynamics.progress import bar

        with bar("dense check", len(found.hessian.steps), quiet=quiet) as advance:
            return verify_dense(run, found, advance).lines()
