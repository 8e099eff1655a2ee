"""`dlf-dynamics plot`: the figures of all analyses again, from their files."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from dlf_dynamics.commands.figures import FigureFiles, FigureOptions, listed
from dlf_dynamics.commands.studies import DiagramOptions, is_study
from dlf_dynamics.commands.terminal import Flattened, ProblemName, say, without
from dlf_dynamics.errors import ConfigError, FileError
from dlf_dynamics.paper import on_paper
from dlf_dynamics.registry import ANALYSES
from dlf_dynamics.spans import span_of
from dlf_dynamics.startup import open_recorded, require_distinct

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dlf_dynamics.run import Run


@dataclass(frozen=True)
class _Plot:
    """Draw all figures of a run again, or those of a study.

    Of a run they are those of the run file and of the results beside it, such as RUN.spectrum.h5
    and RUN.bifurcations.h5, as far as these are there. Of a study file they are phase diagrams,
    averaged over the seeds, with the static loss (A = 1) as a row of its own, the difference to it
    and the standard errors; and curves if there are any. Several runs are laid over each other.

      dlf-dynamics plot run.h5 -o figure.pdf
      dlf-dynamics plot a.h5 b.h5 -o both.png
      dlf-dynamics plot run.h5 --format pdf --width 3.4in --panels loss,sharpness --letters
      dlf-dynamics plot study.h5 --quantity validation_accuracy --x schedule.period
    """

    paths: tyro.conf.Positional[tuple[Path, ...]]
    """Run files, or one study file."""
    problem: ProblemName = None
    drawn: Annotated[FigureOptions, Flattened] = field(default_factory=FigureOptions)
    panels: tuple[str, ...] = ()
    """Draw the figure of the run alone, with these panels: class-weights, loss, loss-change,
    accuracy, sharpness, smallest, ntk; of several runs, loss, accuracy, sharpness, ntk. None draws
    all figures."""
    zoom: str | None = None
    """Steps a:b of the figure's second column; none means around the second burst. On a narrow page
    it is the only one."""
    diagram: Annotated[DiagramOptions, Flattened] = field(default_factory=DiagramOptions)

    def execute(self) -> int:
        """Draws.

        Raises:
            ConfigError: when no file is given, or several of which one is a study.
        """
        if not self.paths:
            raise ConfigError("no file is given; expected run files, or one study file")
        if len(self.paths) > 1 and self.drawn.output is None:
            raise ConfigError("output is none; expected -o, as the figure is of several runs")
        files = self.drawn.files(self.path)
        with on_paper(self.drawn.paper):
            if len(self.paths) > 1:
                return self._overlay(files)
            return self._draw(files)

    @property
    def path(self) -> Path:
        """The file, or the first one."""
        return self.paths[0]

    @property
    def _window(self) -> tuple[float, float] | None:
        return None if self.zoom is None else span_of(self.zoom, "zoom")

    def _overlay(self, files: FigureFiles) -> int:
        """Draws several runs over each other."""
        for path in self.paths:
            if is_study(path):
                raise ConfigError(f"{path} is a study; expected it alone, or run files")
        for name in ANALYSES:
            if getattr(self, name) is not None:
                raise ConfigError(
                    f"{name} is given for several runs; expected the results beside their files"
                )
        from dlf_dynamics.analysis.pipeline import analysis_named
        from dlf_dynamics.analysis.spectra.overlay import Overlaid, overlay_figure

        require_distinct(self.paths)
        spectrum, overlaid, refused = analysis_named("spectrum"), [], []
        for path in self.paths:
            run, found = open_recorded(path, 0, self.problem), None
            beside = spectrum.path(path)
            if not beside.exists():
                say(f"without {beside}, which `dlf-dynamics spectrum {path}` makes")
            else:
                try:
                    found = spectrum.load(beside, run)
                except FileError as error:  # the other curves do not depend on it
                    refused.append(error)
            overlaid.append(Overlaid(run, found))
        files.write(overlay_figure(overlaid, self._window, listed(self.panels)))
        return without(refused)

    def _draw(self, files: FigureFiles) -> int:
        if is_study(self.path):
            return self.diagram.draw(self.path, files)
        _ = self._window
        run = open_recorded(self.path, 0, self.problem)
        found, refused = self._results(run)
        for line in next((result.source.caution for result in found.values()), []):
            say(line)
        for name, figure in self._figures(run, found, refused):
            files.write(figure, name)
        return without(refused.values())

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

            yield "", run_figure(run, found.get("spectrum"), self._window, listed(self.panels))
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
