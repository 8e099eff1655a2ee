"""`dlf-dynamics plot`: draws the figures of all analyses again, from their files."""

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

    For a run they are the figures of the run file and of the results beside it, such as
    RUN.spectrum.h5 and RUN.bifurcations.h5, if these exist. For a study file they are phase
    diagrams, averaged over the seeds, with the static loss (A = 1) as a separate row, the
    difference to it and the standard errors; and curves if there are any. Several runs are drawn
    on top of each other.

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
    """Draw only the figure of the run, with these panels: class-weights, loss, loss-change,
    accuracy, sharpness, smallest, ntk; of several runs, loss, accuracy, sharpness, ntk. None draws
    all figures."""
    zoom: str | None = None
    """Steps a:b of the figure's second column; none means around the second burst. On a narrow page
    it is the only column."""
    diagram: Annotated[DiagramOptions, Flattened] = field(default_factory=DiagramOptions)

    def execute(self) -> int:
        """Draws.

        Raises:
            ConfigError: when no file is given, or several files of which one is a study.
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
        """Draws several runs on top of each other."""
        for path in self.paths:
            if is_study(path):
                raise ConfigError(f"{path} is a study; expected it alone, or run files")
        for name in ANALYSES:
            if getattr(self, name) is not None:
                raise ConfigError(
                    f"{name} is given for several runs; expected the results beside their files"
                )
        from dlf_dynamics.analysis.spectra.overlay import Overlaid, overlay_figure

        require_distinct(self.paths)
        overlaid, errors = [], []
        for path in self.paths:
            run = open_recorded(path, 0, self.problem)
            result, error = _result_of("spectrum", run)
            overlaid.append(Overlaid(run, result))
            errors.append(error)
        files.write(overlay_figure(overlaid, self._window, listed(self.panels)))
        return without(filter(None, errors))

    def _draw(self, files: FigureFiles) -> int:
        if is_study(self.path):
            return self.diagram.draw(self.path, files)
        _ = self._window
        run = open_recorded(self.path, 0, self.problem)
        results, refused = self._results(run)
        for line in next((result.source.caution for result in results.values()), []):
            say(line)
        for name, figure in self._figures(run, results, refused):
            files.write(figure, name)
        return without(refused.values())

    def _results(self, run: Run) -> tuple[dict[str, Any], dict[str, FileError]]:
        """The existing results of analyses, and the errors of files that cannot be read."""
        pairs = {name: _result_of(name, run, getattr(self, name)) for name in ANALYSES}
        results = {name: result for name, (result, _) in pairs.items() if result is not None}
        return results, {name: error for name, (_, error) in pairs.items() if error is not None}

    def _figures(
        self, run: Run, results: dict[str, Any], refused: dict[str, FileError]
    ) -> Iterator[tuple[str, Figure]]:
        from dlf_dynamics.analysis.pipeline import analysis_named

        if self.panels:
            from dlf_dynamics.analysis.spectra.plots import run_figure

            yield "", run_figure(run, results.get("spectrum"), self._window, listed(self.panels))
            return
        for name in ANALYSES:
            analysis = analysis_named(name)
            zoomed = any(option.name == "zoom" for option in dataclasses.fields(analysis.view))
            view = analysis.view(zoom=self.zoom) if zoomed else analysis.view()
            if name in results:
                yield from analysis.figures(run, results[name], view)
            elif name not in refused:
                yield from analysis.without(run, view)


def _result_of(
    name: str, run: Run, chosen: Path | None = None
) -> tuple[Any, None] | tuple[None, FileError | None]:
    """The result of an analysis and no error, or no result and the error, if there is a file.

    Args:
        name: name of the analysis.
        run: run that was analysed.
        chosen: result file; None means the one beside the run file, if it exists.
    """
    from dlf_dynamics.analysis.pipeline import analysis_named

    analysis = analysis_named(name)
    path = chosen or analysis.path(run.path)
    if chosen is None and not path.exists():
        say(f"without {path}, which `dlf-dynamics {name} {run.path}` makes")
        return None, None
    try:
        return analysis.load(path, run), None
    except FileError as error:  # other results can be drawn without it
        return None, error


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
