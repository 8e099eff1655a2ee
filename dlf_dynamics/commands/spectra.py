"""`dlf-dynamics spectrum` and `dlf-dynamics plot`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from dlf_dynamics.commands.studies import DiagramOptions, is_study
from dlf_dynamics.commands.terminal import (
    Flattened,
    ProblemName,
    RunPath,
    interruptible,
    kept_parts,
    say,
)
from dlf_dynamics.config import SpectrumConfig, span_of
from dlf_dynamics.startup import check_writable, open_recorded

if TYPE_CHECKING:
    from dlf_dynamics.resultfile import Parts
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
    figures: Annotated[bool, tyro.conf.FlagCreatePairsOff] = True
    """Draw the figures; --no-figures leaves them out."""
    zoom: str | None = None
    """Steps a:b of the figure's second column; none means around the second burst."""
    quiet: bool = False
    """No progress bar."""
    threads: int = 0
    """Cores of a CPU to use; 0 takes all. On small problems each treats checkpoints of its own."""

    def execute(self) -> int:
        """Computes, writes, draws and prints."""
        zoom = None if self.zoom is None else span_of(self.zoom, "zoom")
        run = open_recorded(self.path, self.threads, self.problem)
        from dlf_dynamics.analysis import report, spectrum

        output = self.output or spectrum.default_path(self.path)
        check_writable(output)
        settings = dataclasses.asdict(self.settings)
        parts = kept_parts(output, "spectrum", run.run_id, settings, resume=self.resume)
        again = f"dlf-dynamics spectrum {self.path} --resume"
        found = interruptible(lambda stop: self._compute(run, parts, stop), again)
        if isinstance(found, int):
            return found
        spectrum.save_spectrum(found, output)
        parts.clear()
        say(f"wrote {output}")
        if self.figures:
            _draw(run, found, self.path.with_suffix(""), zoom)
        if self.json:
            print(json.dumps(report.summary(found), indent=1))
        else:
            console = Console()
            if not found.unwatched:
                console.print(report.events_table(found))
            for line in report.closing_lines(found):
                console.print(line, highlight=False)
        return _verify(run, found, quiet=self.quiet) if self.verify_dense else 0

    def _compute(self, run: Run, parts: Parts, stop: Callable[[], bool]) -> Any:
        from dlf_dynamics.analysis import spectrum
        from dlf_dynamics.progress import bar

        chosen = spectrum.select_checkpoints(run, self.settings)
        some = spectrum.density_checkpoints(self.settings, chosen)
        before = {"hessian": 0, "ntk": len(chosen), "density": 2 * len(chosen)}
        densities = len(spectrum.DENSITIES) * len(some) * self.settings.density
        before["infinite-width"] = 2 * len(chosen) + densities
        total = before["infinite-width"] + len(chosen) * self.settings.infinite_width
        with bar("spectrum", total, quiet=self.quiet) as advance:

            def told(what: str, done: int) -> None:
                advance(before[what] + done)
                if stop():
                    raise KeyboardInterrupt

            return spectrum.compute_spectrum(run, self.settings, parts=parts, progress=told)


@dataclass(frozen=True)
class Plot:
    """Draw the figures of a run again, from RUN.h5 and RUN.spectrum.h5, or those of a study.

    Of a study file they are phase diagrams, averaged over the seeds, with the static loss (A = 1)
    as a row of its own, the difference to it and the standard errors; and curves if there are any.

      dlf-dynamics plot run.h5
      dlf-dynamics plot study.h5 --quantity validation_accuracy --x schedule.period
    """

    path: RunPath
    """Run file or study file."""
    spectrum: Path | None = None
    """Result file of `spectrum`; none means RUN.spectrum.h5."""
    problem: ProblemName = None
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Name of the figures without suffix; none means that of the run file."""
    zoom: str | None = None
    """Steps a:b of the figure's second column; none means around the second burst."""
    diagram: Annotated[DiagramOptions, Flattened] = field(default_factory=DiagramOptions)

    def execute(self) -> int:
        """Draws."""
        if is_study(self.path):
            return self.diagram.draw(self.path, self.output or self.path.with_suffix(""))
        zoom = None if self.zoom is None else span_of(self.zoom, "zoom")
        run = open_recorded(self.path, 0, self.problem)
        from dlf_dynamics.analysis.spectrum import default_path, load_spectrum

        found = load_spectrum(self.spectrum or default_path(self.path), run)
        _draw(run, found, self.output or self.path.with_suffix(""), zoom)
        return 0


def _draw(run: Any, spectrum: Any, stem: Path, zoom: tuple[float, float] | None) -> None:
    from dlf_dynamics.analysis import plots

    written = plots.save(plots.run_figure(run, spectrum, zoom), stem)
    if not spectrum.unwatched:
        second = stem.with_name(f"{stem.name}.bifurcation")
        written += plots.save(plots.bifurcation_figure(run, spectrum), second)
    if spectrum.densities:
        from dlf_dynamics.analysis.density_plots import density_figure

        third = stem.with_name(f"{stem.name}.density")
        written += plots.save(density_figure(spectrum), third)
    if spectrum.infinite_width is not None:
        from dlf_dynamics.analysis.kernel_plots import kernel_figure

        fourth = stem.with_name(f"{stem.name}.kernels")
        written += plots.save(kernel_figure(spectrum), fourth)
    say("wrote " + ", ".join(map(str, written)))


def _verify(run: Any, spectrum: Any, *, quiet: bool) -> int:
    from dlf_dynamics.analysis.verification import verify_dense
    from dlf_dynamics.progress import bar

    with bar("dense check", len(spectrum.hessian.steps), quiet=quiet) as advance:
        found = verify_dense(run, spectrum, advance)
    for line in found.lines():
        say(line)
    return 0
