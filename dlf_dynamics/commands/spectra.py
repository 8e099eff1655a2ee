"""`dlf-dynamics spectrum` and `dlf-dynamics plot`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from dlf_dynamics.commands.figures import FigureFiles, draw_bifurcations, draw_run, figure_files
from dlf_dynamics.commands.studies import DiagramOptions, is_study
from dlf_dynamics.commands.terminal import (
    Flattened,
    ProblemName,
    RunPath,
    interruptible,
    kept_parts,
    say,
    show,
)
from dlf_dynamics.config import SpectrumConfig, span_of
from dlf_dynamics.errors import FileError
from dlf_dynamics.startup import check_writable, leads, open_recorded

if TYPE_CHECKING:
    from dlf_dynamics.parts import Parts
    from dlf_dynamics.run import Run


@dataclass(frozen=True)
class Spectrum:
    """Compute Hessian and NTK spectra along a run, the threshold, its crossings, and the figures.

    Eigenvalues are of the loss as it was weighted at each checkpoint's step, at the iterate and at
    the 1:2:1 centre of three consecutive iterates. RUN.h5 is not changed; the results go to
    RUN.spectrum.h5, the figures to RUN.png, RUN.bifurcation.png, with --density RUN.density.png,
    with --infinite-width RUN.kernels.png, and the same as .svg. Ctrl-C ends it after the part at
    hand, a second one at once; what was finished then, or before a kill, is in RUN.spectrum.parts,
    and --resume goes on.

      dlf-dynamics spectrum run.h5 --steps 8000:10500 --verify-dense
      dlf-dynamics spectrum run.h5 --operator ggn --which both --k 5 --density
    """

    path: RunPath
    """Run file."""
    problem: ProblemName = None
    settings: Annotated[SpectrumConfig, Flattened] = field(default_factory=SpectrumConfig)
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Result file; none means RUN.spectrum.h5."""
    resume: bool = False
    """Go on with an interrupted spectrum of the same settings."""
    json: bool = False
    """Print the events as JSON instead of a table."""
    verify_dense: bool = False
    """Compare every value with a dense eigensolve and print the worst difference (at most 2,000
    parameters; takes about a second for each checkpoint)."""
    no_figures: bool = False
    """Leave the figures out."""
    zoom: str | None = None
    """Steps a:b of the figure's second column; none means around the second burst."""
    quiet: bool = False
    """No progress bar."""
    threads: int = 0
    """Cores of a CPU to use; 0 takes all. On small problems each treats checkpoints of its own."""
    devices: int = 0
    """Devices to use, GPUs or parts of a CPU; 0 takes all GPUs. The examples of a large network and
    the vectors are shared out over them, of small ones the checkpoints."""
    distributed: bool = False
    """This is one of several processes, on one machine or many, whose devices are used together:
    start the same command in each, by Slurm or another launcher (docs: several devices)."""

    def execute(self) -> int:
        """Computes, writes, draws and prints."""
        zoom = None if self.zoom is None else span_of(self.zoom, "zoom")
        run = open_recorded(
            self.path,
            self.threads,
            self.problem,
            devices=self.devices,
            distributed=self.distributed,
        )
        from dlf_dynamics.analysis.spectra import spectrum, summary

        output = self.output or spectrum.default_path(self.path)
        check_writable(output)
        settings = dataclasses.asdict(self.settings)
        again = f"dlf-dynamics spectrum {self.path} --resume"
        with kept_parts(output, "spectrum", run, settings, resume=self.resume) as parts:
            found = interruptible(lambda stop: self._compute(run, parts, stop), again)
            if isinstance(found, int) or not leads():
                return found if isinstance(found, int) else 0
            spectrum.save_spectrum(found, output)
            parts.clear()
        say(f"wrote {output}")
        if not self.no_figures:
            draw_run(run, found, FigureFiles(self.path.with_suffix("")), zoom)
        if self.json:
            print(json.dumps(summary.as_dict(found), indent=1))
        else:
            table = [summary.events_table(found)] if not found.unwatched else []
            told = summary.saturation_lines(run, found.hessian.steps)
            show(*table, *summary.closing_lines(found), *told)
        return _verify(run, found, quiet=self.quiet) if self.verify_dense else 0

    def _compute(self, run: Run, parts: Parts, stop: Callable[[], bool]) -> Any:
        from dlf_dynamics.analysis.spectra import spectrum
        from dlf_dynamics.progress import ProductMeter, bar

        chosen = spectrum.select_checkpoints(run, self.settings)
        some = spectrum.density_checkpoints(self.settings, chosen)
        before = {"hessian": 0, "ntk": len(chosen), "density": 2 * len(chosen)}
        densities = len(spectrum.DENSITIES) * len(some) * self.settings.density
        before["infinite-width"] = 2 * len(chosen) + densities
        total = before["infinite-width"] + len(chosen) * self.settings.infinite_width
        points = 2 if run.own_updates else 1  # without them there is no centre
        meter = ProductMeter(points * len(chosen), self.settings.max_matvecs)
        with bar("spectrum", total, quiet=self.quiet or not leads()) as advance:

            def told(what: str, done: int) -> None:
                advance(before[what] + done)
                if what == "hessian":
                    meter.expect(points * (len(chosen) - done))
                    advance.note("")
                if stop():
                    raise KeyboardInterrupt

            return spectrum.compute_spectrum(
                run,
                self.settings,
                parts=parts,
                progress=told,
                watch=lambda made: advance.note(meter(made)),
            )


@dataclass(frozen=True)
class Plot:
    """Draw all figures of a run again, or those of a study.

    Of a run they are those of the run file, of RUN.spectrum.h5 and of RUN.bifurcations.h5, as far
    as these are there. Of a study file they are phase diagrams, averaged over the seeds, with the
    static loss (A = 1) as a row of its own, the difference to it and the standard errors; and
    curves if there are any.

      dlf-dynamics plot run.h5 -o figure.pdf
      dlf-dynamics plot study.h5 --quantity validation_accuracy --x schedule.period
    """

    path: RunPath
    """Run file or study file."""
    spectrum: Path | None = None
    """Result file of `spectrum`; none means RUN.spectrum.h5, if it is there."""
    bifurcations: Path | None = None
    """Result file of `bifurcations`; none means RUN.bifurcations.h5, if it is there."""
    problem: ProblemName = None
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Name of the figures, in the format of its suffix: .png, .svg or .pdf; without suffix they are
    png and svg. None means the name of the run file."""
    zoom: str | None = None
    """Steps a:b of the figure's second column; none means around the second burst."""
    diagram: Annotated[DiagramOptions, Flattened] = field(default_factory=DiagramOptions)

    def execute(self) -> int:
        """Draws."""
        files = figure_files(self.output, self.path)
        if is_study(self.path):
            return self.diagram.draw(self.path, files)
        zoom = None if self.zoom is None else span_of(self.zoom, "zoom")
        run = open_recorded(self.path, 0, self.problem)
        from dlf_dynamics.analysis.instabilities import bifurcations
        from dlf_dynamics.analysis.spectra import spectrum

        found: dict[str, Any] = {}
        refused: dict[str, FileError] = {}
        for name, chosen, place, load in (
            ("spectrum", self.spectrum, spectrum.default_path, spectrum.load_spectrum),
            (
                "bifurcations",
                self.bifurcations,
                bifurcations.default_path,
                bifurcations.load_bifurcations,
            ),
        ):
            path = chosen or place(self.path)
            if chosen is None and not path.exists():
                say(f"without {path}, which `dlf-dynamics {name} {self.path}` makes")
                continue
            try:
                found[name] = load(path, run)
            except FileError as error:  # the other figures do not depend on it
                refused[name] = error
        for line in next((result.source.caution for result in found.values()), []):
            say(line)
        if "spectrum" not in refused:
            draw_run(run, found.get("spectrum"), files, zoom)
        if "bifurcations" in found:
            draw_bifurcations(found["bifurcations"], files)
        for error in refused.values():
            raise error
        return 0


def _verify(run: Any, spectrum: Any, *, quiet: bool) -> int:
    from dlf_dynamics.analysis.spectra.verification import verify_dense
    from dlf_dynamics.progress import bar

    with bar("dense check", len(spectrum.hessian.steps), quiet=quiet) as advance:
        found = verify_dense(run, spectrum, advance)
    for line in found.lines():
        say(line)
    return 0
