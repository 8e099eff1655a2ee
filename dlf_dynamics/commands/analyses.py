"""The command of each analysis of the registry, and `dlf-dynamics plot`, which draws them all."""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from dlf_dynamics.commands.figures import FigureFiles, FigureOptions, listed
from dlf_dynamics.commands.studies import DiagramOptions, is_study
from dlf_dynamics.commands.terminal import (
    Flattened,
    ProblemName,
    RunPath,
    interruptible,
    say,
    show,
)
from dlf_dynamics.config import span_of
from dlf_dynamics.errors import ConfigError, FileError
from dlf_dynamics.page import on_page
from dlf_dynamics.registry import ANALYSES
from dlf_dynamics.startup import check_writable, leads, open_recorded

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dlf_dynamics.analysis.pipeline import Analysis
    from dlf_dynamics.run import Run


@dataclass(frozen=True)
class AnalysisCommand(ABC):
    """What the commands of all analyses do: compute, write, draw and print."""

    path: RunPath
    """Run file."""
    problem: ProblemName = None
    settings: Any = None
    view: Any = None
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Result file; none means one beside the run file, named after the analysis."""
    resume: bool = False
    """Go on with an analysis that was interrupted or killed, of the same settings."""
    json: bool = False
    """Print the result as JSON instead of a table."""
    no_figures: bool = False
    """Leave the figures out."""
    quiet: bool = False
    """No progress bar."""
    threads: int = 0
    """Cores of a CPU to use; 0 takes all. On small problems each treats checkpoints of its own."""
    devices: int = 0
    """Devices to use, GPUs or parts of a CPU; 0 takes all GPUs. The examples of a large network and
    the vectors are shared out over them, of small ones the checkpoints."""
    follow: bool = False
    """Analyse a run that is still being written again and again, as new checkpoints come, until its
    writer ends, or Ctrl-C. What is known of earlier checkpoints is not computed again."""
    distributed: bool = False
    """This is one of several processes, on one machine or many, whose devices are used together:
    start the same command in each, by Slurm or another launcher (docs: several devices)."""

    @property
    @abstractmethod
    def analysis(self) -> Analysis[Any, Any]:
        """Which one it is."""

    def execute(self) -> int:
        """Computes, writes, draws and prints."""
        analysis = self.analysis
        if self.distributed and not analysis.distributed:
            raise ConfigError(
                f"distributed: several processes cannot compute {analysis.name} together; leave "
                "it out"
            )
        self._refuse_follow()
        output = self.output or analysis.path(self.path)
        check_writable(output)
        run = self._opened()
        if self.follow:
            found, run, code = self._followed(output)
        else:
            found = computed(
                analysis, run, self.settings, output, resume=self.resume, quiet=self.quiet
            )
            code = 0
        if isinstance(found, int) or not leads():
            return found if isinstance(found, int) else 0
        say("wrote " + ", ".join(map(str, [output, *_write_tables(analysis, found, output)])))
        if not self.no_figures:
            files = FigureFiles(self.path.with_suffix(""))
            for name, figure in analysis.figures(run, found, self.view):
                files.write(figure, name)
        if self.json:
            print(json.dumps(analysis.as_dict(found), indent=1))
        else:
            show(*analysis.lines(run, found))
        for line in analysis.verify(run, found, self.view, quiet=self.quiet):
            say(line)
        return code

    def _opened(self) -> Run:
        return open_recorded(
            self.path,
            self.threads,
            self.problem,
            devices=self.devices,
            distributed=self.distributed,
        )

    def _refuse_follow(self) -> None:
        """Raises ConfigError where a run cannot be followed."""
        if self.follow and not self.analysis.follows:
            raise ConfigError(f"follow: {self.analysis.name} cannot follow a run; leave it out")
        if self.follow and (self.distributed or self.resume):
            other = "distributed" if self.distributed else "resume"
            raise ConfigError(f"follow and {other} are both given; expected one of them")

    def _followed(self, output: Path) -> tuple[Any, Run, int]:
        """What was found last, of which state of the run, and the exit code.

        An exit code stands in the place of what was found where nothing was.
        """
        from dlf_dynamics.analysis.following import latest
        from dlf_dynamics.progress import Stop

        stop = Stop("stopping after this look")
        with stop.listening():
            found, run = latest(
                self.path, self._opened, self.analysis, self.settings, output, stop=stop
            )
        if stop.signal:
            say(f"stopped following; {output} is of steps 0 to {run.source.last_step}")
        code = 128 + stop.signal if stop.signal else 0
        return (code if found is None else found), run, code


def computed(
    analysis: Analysis[Any, Any],
    run: Run,
    settings: Any,
    output: Path,
    *,
    again: str = "",
    **how: Any,
) -> Any:
    """What an analysis finds, written; or the exit code of an interruption.

    Args:
        analysis: what to perform.
        run: the run that is analysed.
        settings: settings of the analysis.
        output: the result file.
        again: the command that goes on; none means that of the analysis.
        how: see `Analysis.performed`.
    """
    again = again or f"dlf-dynamics {analysis.name} {run.path} --resume"
    return interruptible(
        lambda stop: analysis.performed(run, settings, output, stop=stop, **how), again
    )


def _write_tables(analysis: Analysis[Any, Any], found: Any, output: Path) -> list[Path]:
    """Writes the text files of a result; returns their names."""
    from dlf_dynamics.resultfile import write_whole

    paths = []
    for suffix, content in analysis.tables(found).items():
        paths.append(output.with_suffix(suffix))
        write_whole(paths[-1], content.encode())
    return paths


def command_of(name: str) -> type:
    """The command of an analysis, made of what it declares."""
    from dlf_dynamics.analysis.pipeline import analysis_named

    analysis = analysis_named(name)
    made = make_dataclass(
        type(analysis).__name__,
        [
            (
                "settings",
                Annotated[analysis.config, Flattened],
                field(default_factory=analysis.config),
            ),
            ("view", Annotated[analysis.view, Flattened], field(default_factory=analysis.view)),
        ],
        bases=(AnalysisCommand,),
        frozen=True,
        namespace={"analysis": property(lambda self: analysis)},
    )
    made.__doc__ = type(analysis).__doc__
    return made


@dataclass(frozen=True)
class _Plot:
    """Draw all figures of a run again, or those of a study.

    Of a run they are those of the run file and of the results beside it, such as RUN.spectrum.h5
    and RUN.bifurcations.h5, as far as these are there. Of a study file they are phase diagrams,
    averaged over the seeds, with the static loss (A = 1) as a row of its own, the difference to it
    and the standard errors; and curves if there are any.

      dlf-dynamics plot run.h5 -o figure.pdf
      dlf-dynamics plot run.h5 --format pdf --width 3.4in --panels loss,sharpness --letters
      dlf-dynamics plot study.h5 --quantity validation_accuracy --x schedule.period
    """

    path: RunPath
    """Run file or study file."""
    problem: ProblemName = None
    drawn: Annotated[FigureOptions, Flattened] = field(default_factory=FigureOptions)
    panels: tuple[str, ...] = ()
    """Draw the figure of the run alone, with these panels: class-weights, loss, loss-change,
    accuracy, sharpness, smallest, ntk; none draws all figures."""
    zoom: str | None = None
    """Steps a:b of the figure's second column; none means around the second burst. On a narrow page
    it is the only one."""
    diagram: Annotated[DiagramOptions, Flattened] = field(default_factory=DiagramOptions)

    def execute(self) -> int:
        """Draws."""
        files = self.drawn.files(self.path)
        with on_page(self.drawn.page):
            return self._draw(files)

    def _draw(self, files: FigureFiles) -> int:
        if is_study(self.path):
            return self.diagram.draw(self.path, files)
        _ = None if self.zoom is None else span_of(self.zoom, "zoom")
        run = open_recorded(self.path, 0, self.problem)
        found, refused = self._results(run)
        for line in next((result.source.caution for result in found.values()), []):
            say(line)
        for name, figure in self._figures(run, found, refused):
            files.write(figure, name)
        for error in refused.values():
            raise error
        return 0

    def _results(self, run: Run) -> tuple[dict[str, Any], dict[str, FileError]]:
        """What analyses found, as far as it is on file; and what is wrong with the other files."""
        from dlf_dynamics.analysis.pipeline import analysis_named

        found: dict[str, Any] = {}
        refused: dict[str, FileError] = {}
        for name in ANALYSES:
            analysis, chosen = analysis_named(name), getattr(self, name)
            path = chosen or analysis.path(self.path)
            if chosen is None and not path.exists():
                say(f"without {path}, which `dlf-dynamics {name} {self.path}` makes")
                continue
            try:
                found[name] = analysis.load(path, run)
            except FileError as error:  # the other figures do not depend on it
                refused[name] = error
        return found, refused

    def _figures(
        self, run: Run, found: dict[str, Any], refused: dict[str, FileError]
    ) -> Iterator[tuple[str, Figure]]:
        from dlf_dynamics.analysis.pipeline import analysis_named

        if self.panels:
            from dlf_dynamics.analysis.spectra.plots import run_figure

            window = None if self.zoom is None else span_of(self.zoom, "zoom")
            yield "", run_figure(run, found.get("spectrum"), window, listed(self.panels))
            return
        for name in ANALYSES:
            analysis = analysis_named(name)
            zoomed = any(option.name == "zoom" for option in dataclasses.fields(analysis.view))
            view = analysis.view(zoom=self.zoom) if zoomed else analysis.view()
            if name in found:
                yield from analysis.figures(run, found[name], view)
            elif name not in refused:
                yield from analysis.without(run, view)


Plot = make_dataclass(
    "Plot",
    [
        (
            name,
            Annotated[
                Path | None,
                tyro.conf.arg(
                    help=f"Result file of `{name}`; none means RUN.{name}.h5, if it is there."
                ),
            ],
            None,
        )
        for name in ANALYSES
    ],
    bases=(_Plot,),
    frozen=True,
)
Plot.__doc__ = _Plot.__doc__
