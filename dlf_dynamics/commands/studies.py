"""`dlf-dynamics sweep`, and the figures of a study that `plot` draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from dlf_dynamics.commands.figures import FigureFiles
from dlf_dynamics.commands.terminal import interruptible, say
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.hdf5 import format_name
from dlf_dynamics.outputs import beside
from dlf_dynamics.startup import check_writable, start_jax


@dataclass(frozen=True)
class Sweep:
    """Train many configurations and keep what came of each in one file.

    STUDY.toml is a configuration as for `train`, with the values to go through under [grid] (every
    combination) or as [[list]] (one run each), and what to measure beside accuracy, loss and
    instabilities under [measures]:

      preset = "published"
      steps = 20000

      [grid]
      schedule.amplitude = [1, 10, 70]
      schedule.period = {logspace = [50, 5000, 5]}
      model.seed = {from = 0, to = 9}

      [measures]
      sharpness = true

    Runs are distributed over all cores, or a GPU makes several at once. After Ctrl-C or a kill,
    --resume continues with the remaining runs. A run that fails is noted, and the others go on.

      dlf-dynamics sweep study.toml
      dlf-dynamics plot study.h5
    """

    study: tyro.conf.Positional[Path]
    """STUDY.toml."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Study file to write; none means STUDY.h5."""
    processes: int = 0
    """Processes, each with one thread; 0 chooses one per core."""
    batch: int = 0
    """Runs that are trained together by one program, if they differ in amplitude, period, learning
    rate, momentum or seeds only; 0 chooses 1 on a CPU, where more gains nothing, and 32 on a
    GPU."""
    scheduler: str | None = None
    """Address of a Dask scheduler, such as tcp://host:8786, whose workers make the runs."""
    resume: bool = False
    """Continue a study that was interrupted or killed."""
    retry_failed: bool = False
    """With --resume: repeat the runs that failed."""
    overwrite: bool = False
    """Replace the study file if it exists."""
    yes: bool = False
    """Make more than 1,000 runs without asking for confirmation."""
    quiet: bool = False
    """No progress bar."""

    def execute(self) -> int:
        """Makes the runs."""
        from dlf_dynamics.analysis.studies.study import load_study, require_size

        study = load_study(self.study)
        require_size(study, yes=self.yes)
        output = self.output or beside(self.study, ".h5")
        check_writable(output)
        # Measures of float32 runs are as certain with JAX set to float64.
        dtypes = {config.dtype for config in study.configs}
        start_jax("float64" if "float64" in dtypes else "float32", 1, 0)
        again = f"dlf-dynamics sweep {self.study} --resume"
        what = "stopping; runs that do not end within a second are left for --resume"
        results = interruptible(lambda stop: self._sweep(study, output, stop), again, what)
        if isinstance(results, int):
            return results
        say(f"wrote {output}: {results.counts}")
        say(f"next: dlf-dynamics plot {output}")
        return 0

    def _sweep(self, study: Any, output: Path, stop: Callable[[], bool]) -> Any:
        from dlf_dynamics.analysis.studies.sweep import sweep
        from dlf_dynamics.progress import bar

        with bar("runs", len(study), quiet=self.quiet) as advance:
            results = sweep(
                study,
                output,
                processes=self.processes,
                batch=self.batch,
                scheduler=self.scheduler,
                resume=self.resume,
                retry_failed=self.retry_failed,
                overwrite=self.overwrite,
                progress=advance,
                stop=stop,
            )
        if not results.complete:
            raise KeyboardInterrupt
        return results


def is_study(path: Path) -> bool:
    """Whether a file declares itself a study file."""
    return format_name(path) == "dlf-dynamics-study"


@dataclass(frozen=True)
class DiagramOptions:
    """The phase diagrams of a study to draw."""

    quantity: tuple[str, ...] = ()
    """For a study: columns to draw, such as validation_accuracy, instabilities, sharpness or ntk;
    none means those of general interest."""
    x: str | None = None
    """For a study: key of the horizontal axis, such as schedule.period."""
    y: str | None = None
    """For a study: key of the vertical axis, such as schedule.amplitude."""
    fix: tuple[str, ...] = ()
    """For a study: KEY=VALUE for further keys, of which a diagram shows one value."""

    def draw(self, path: Path, files: FigureFiles) -> int:
        """Draws and writes the figures."""
        start_jax("float64", 1, 0)
        from dlf_dynamics.analysis.studies.studyfile import read_study

        for name, figure in self._figures(read_study(path)).items():
            suffix = name.replace(", ", ".").replace(" ", "-").replace("/", "-")
            files.write(figure, suffix)
        return 0

    def diagrams(self, results: Any) -> dict[str, Any]:
        """The requested phase diagrams, by name."""
        from dlf_dynamics.analysis.report.study import study_diagrams
        from dlf_dynamics.analysis.studies.phase_diagram import phase_diagram

        if self.x is None and self.y is None and not self.fix:
            return study_diagrams(results, self.quantity or None)
        fixed = _settings(self.fix, results)
        return {
            name: phase_diagram(results, name, x=self.x, y=self.y, fixed=fixed)
            for name in self.quantity or ("accuracy",)
        }

    def _figures(self, results: Any) -> dict[str, Any]:
        from dlf_dynamics.analysis.studies.study_plots import draw_phase_diagram, draw_study

        if self.x is None and self.y is None and not self.fix:
            return draw_study(results, self.quantity or None)
        return {
            name: draw_phase_diagram(diagram) for name, diagram in self.diagrams(results).items()
        }


def _settings(assignments: tuple[str, ...], results: Any) -> dict[str, Any]:
    """KEY=VALUE as values of the study's keys."""
    fixed = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or key not in results.study.keys:
            raise ConfigError(
                f"fix is {assignment!r}; expected KEY=VALUE with a key of "
                f"{', '.join(results.study.keys)}"
            )
        values = results.study.values(key)
        try:
            fixed[key] = values.dtype.type(value)
        except ValueError as error:
            raise ConfigError(f"fix is {assignment!r}; expected a number for {key}") from error
    return fixed
