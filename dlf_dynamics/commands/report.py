"""`dlf-dynamics report`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from dlf_dynamics.commands.studies import DiagramOptions, is_study
from dlf_dynamics.commands.terminal import Flattened, ProblemName, say, without
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.outputs import beside
from dlf_dynamics.startup import check_writable, open_recorded, require_distinct, start_jax

if TYPE_CHECKING:
    from dlf_dynamics.run import Run

_SUFFIXES = (".html", ".htm")


@dataclass(frozen=True)
class Report:
    """Write what is on file of a run, or of a study, as one page to look at and to send.

    RUN.report.html opens in any browser, without a network: nothing is fetched. For a run it shows
    in words what was trained and what happened, all steps in panels that zoom together, and tables
    of oscillations and crossings whose rows move the panels, from the results beside the run file,
    such as RUN.spectrum.h5 and RUN.bifurcations.h5. Several runs are drawn on top of each other.
    For a study it shows phase diagrams, with the runs of each cell and their configurations.

      dlf-dynamics report run.h5
      dlf-dynamics report run.h5 --follow
      dlf-dynamics report run.h5 other.h5 -o both.html
      dlf-dynamics report study.h5 --quantity validation_accuracy
    """

    paths: tyro.conf.Positional[tuple[Path, ...]]
    """Run files, or one study file."""
    problem: ProblemName = None
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Page to write, .html; none means RUN.report.html, named after the first run if several."""
    follow: bool = False
    """For a run that is still being written, or whose file does not exist yet: analyse it as
    `spectrum --follow` does, and rewrite the page each time, until its writer ends or you press
    Ctrl-C. The settings are those of the spectrum beside it, if there is one."""
    diagram: Annotated[DiagramOptions, Flattened] = field(default_factory=DiagramOptions)

    def execute(self) -> int:
        """Writes the page."""
        if not self.paths:
            raise ConfigError("no file is given; expected run files, or one study file")
        output = self.output or beside(self.paths[0], ".report.html")
        if output.suffix.lower() not in _SUFFIXES:
            raise ConfigError(f"output is {output}; expected a name that ends in .html")
        check_writable(output)
        if self.follow:
            return self._followed(output)
        studies = [path for path in self.paths if is_study(path)]
        if studies and len(self.paths) > 1:
            raise ConfigError(f"{studies[0]} is a study; expected it alone, or run files")
        if studies:
            return self._of_study(output)
        require_distinct(self.paths)
        runs = [open_recorded(path, 0, self.problem) for path in self.paths]
        from dlf_dynamics.analysis.report.report import write_report

        refused = write_report(runs, output)
        say(f"wrote {output}")
        return without(refused)

    def _followed(self, output: Path) -> int:
        """Analyses the run and writes the page until the run has ended."""
        if len(self.paths) > 1:
            raise ConfigError("follow is given for several runs; expected one run file")
        path = next(iter(self.paths))
        opened = lambda: open_recorded(path, 0, self.problem)  # noqa: E731
        from dlf_dynamics.analysis.following import awaited, latest

        run = awaited(path, opened)
        from dlf_dynamics.analysis.pipeline import analysis_named
        from dlf_dynamics.analysis.report.report import write_report
        from dlf_dynamics.progress import Stop

        spectrum = analysis_named("spectrum")
        result, settings = spectrum.path(path), spectrum.config()
        if result.exists():
            known = spectrum.load(result)
            settings = known.asked if known.source.run_id == run.run_id else settings

        def write(run: Run) -> None:
            for error in write_report([run], output):
                say(str(error))
            say(f"wrote {output}")

        stop = Stop("stopping after this look")
        with stop.listening():
            latest(path, opened, spectrum, settings, result, stop=stop, after=write)
        return 128 + stop.signal if stop.signal else 0

    def _of_study(self, output: Path) -> int:
        start_jax("float64", 1, 0)
        from dlf_dynamics.analysis.report.study import write_study_report
        from dlf_dynamics.analysis.studies.studyfile import read_study

        results = read_study(self.paths[0])
        write_study_report(results, self.diagram.diagrams(results), output)
        say(f"wrote {output}")
        return 0
