"""The commands of the command line: options as dataclasses, each a thin layer over the library.

JAX is imported when a command is executed, so that help answers at once.
"""

from __future__ import annotations

import dataclasses
import json
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from dlf_dynamics.config import PRESETS, RunConfig, SpectrumConfig
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.startup import (
    check_writable,
    open_recorded,
    problem_size,
    recorded_config,
    start_jax,
)

if TYPE_CHECKING:
    from dlf_dynamics.resultfile import Parts
    from dlf_dynamics.run import Run

DIVERGED, INVALID = 3, 1

Flattened = tyro.conf.arg(name="")
RunPath = tyro.conf.Positional[Path]


@dataclass(frozen=True)
class Train:
    """Train a network and record the run.

    Without arguments it is the published headline run: a spiral of three classes, one hidden
    layer, gradient descent with learning rate 1, A = 70, T = 5000, 70,000 steps. A CONFIG.toml
    overrides the defaults, and options override both:

      dlf-dynamics train --schedule.amplitude 20 --steps 20000 -o a20.h5
      dlf-dynamics train --resume -o a20.h5
    """

    config: tyro.conf.Positional[Path | None] = None
    """CONFIG.toml with keys as in the options, such as `period = 300` under [schedule]."""
    preset: str | None = None
    """Configuration to start from; without it and without CONFIG.toml it is `published`. Choices:
    published, published-updated, published-static, digits."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("run.h5")
    """Run file to write."""
    resume: bool = False
    """Continue the run in the output file, bit by bit as if it had not been interrupted. With a
    larger --steps it is carried on."""
    overwrite: bool = False
    """Replace the output file if it exists."""
    quiet: bool = False
    """No progress bar."""
    threads: int = 0
    """Threads of XLA on a CPU; 0 chooses one for small problems and all cores for others."""
    run: Annotated[RunConfig, Flattened] = field(default_factory=lambda: PRESETS["published"])

    def execute(self) -> int:
        """Trains, or continues."""
        check_writable(self.output)
        start_jax(self.run.dtype, self.threads, problem_size(self.run))
        from dlf_dynamics import progress

        with (
            progress.Stop().listening() as stop,
            progress.bar("training", self.run.steps, quiet=self.quiet) as advance,
        ):
            run = self._train(advance, stop)
        report = {"diverged": self._diverged, "interrupted": self._interrupted}
        return report.get(run.status, self._complete)(run, stop.signal)

    def _train(self, advance: Callable[[int], None], stop: Callable[[], bool]) -> Run:
        from dlf_dynamics import training

        if not self.resume:
            return training.train(
                self.run, self.output, overwrite=self.overwrite, progress=advance, stop=stop
            )
        recorded = recorded_config(self.output)
        _refuse_changes(dataclasses.asdict(recorded), dataclasses.asdict(self.run))
        return training.resume(self.output, steps=self.run.steps, progress=advance, stop=stop)

    def _complete(self, run: Run, signal: int) -> int:
        loss, accuracy = (run.scalars[name][-1] for name in ("loss", "accuracy"))
        say(
            f"wrote {self.output}: {run.steps[-1]} steps, {len(run.checkpoint_steps)} checkpoints "
            f"of {run.num_params} parameters; loss {loss:.6g}, accuracy {accuracy:.4g}"
        )
        say(f"next: dlf-dynamics spectrum {self.output}")
        return 0

    def _interrupted(self, run: Run, signal: int) -> int:
        say(
            f"interrupted at step {run.resume_point().step}; continue with "
            f"`dlf-dynamics train --resume -o {self.output}`"
        )
        return 128 + signal

    def _diverged(self, run: Run, signal: int) -> int:
        kept = f"step {run.checkpoint_steps[-1]}" if len(run.checkpoint_steps) else "none"
        return fail(
            f"diverged at step {run.steps[-1]}: the loss is {run.scalars['loss'][-1]}; "
            f"{self.output} keeps the run up to there, last checkpoint: {kept}; try "
            f"--optimizer.learning-rate below {self.run.optimizer.learning_rate:g}, "
            "or a smaller --schedule.amplitude",
            DIVERGED,
        )


@dataclass(frozen=True)
class Spectrum:
    """Compute Hessian and NTK spectra along a run, the threshold, its crossings, and the figures.

    Eigenvalues are of the loss as it was weighted at each checkpoint's step, at the iterate and at
    the 1:2:1 centre of three consecutive iterates. RUN.h5 is not changed; the results go to
    RUN.spectrum.h5, the figures to RUN.png, RUN.bifurcation.png and the same as .svg, and with
    --density to RUN.density.png and .svg. Ctrl-C ends it after the part at hand, a second one at
    once; what was finished then, or before a kill, is in RUN.spectrum.parts, and --resume goes on.

      dlf-dynamics spectrum run.h5 --steps 8000:10500 --verify-dense
      dlf-dynamics spectrum run.h5 --operator ggn --which both --k 5 --density
    """

    path: RunPath
    """Run file."""
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
    """Draw the figures."""
    zoom: str | None = None
    """Steps a:b of the figure's second column; none means around the second burst."""
    quiet: bool = False
    """No progress bar."""
    threads: int = 0
    """Cores of a CPU to use; 0 takes all. On small problems each treats checkpoints of its own."""

    def execute(self) -> int:
        """Computes, writes, draws and prints."""
        zoom = _span(self.zoom)
        run = open_recorded(self.path, self.threads)
        from dlf_dynamics.analysis import report, spectrum

        output = self.output or spectrum.default_path(self.path)
        check_writable(output)
        parts = self._parts(run, output)
        from dlf_dynamics.progress import Stop

        stop = Stop()
        try:
            with stop.listening():
                found = self._compute(run, parts, stop)
        except KeyboardInterrupt:
            again = f"dlf-dynamics spectrum {self.path} --resume"
            code = 128 + (stop.signal or signal.SIGINT)
            return fail(f"interrupted; continue with `{again}` and the same options", code)
        spectrum.save_spectrum(found, output)
        parts.clear()
        say(f"wrote {output}")
        if self.figures:
            _draw(run, found, self.path.with_suffix(""), zoom)
        if self.json:
            print(json.dumps(report.summary(found), indent=1))
        else:
            console = Console()
            console.print(report.events_table(found))
            for line in report.closing_lines(found):
                console.print(line, highlight=False)
        return _verify(run, found, quiet=self.quiet) if self.verify_dense else 0

    def _parts(self, run: Run, output: Path) -> Parts:
        from dlf_dynamics.resultfile import Parts

        folder = output.with_suffix(".parts")
        settings = dataclasses.asdict(self.settings)
        parts = Parts(folder, "spectrum", run.run_id, settings)
        if self.resume and not folder.is_dir():
            say(f"nothing to resume in {folder}; starting anew")
        if not self.resume:
            parts.clear()
        return parts

    def _compute(self, run: Run, parts: Parts, stop: Callable[[], bool]) -> Any:
        from dlf_dynamics.analysis import spectrum
        from dlf_dynamics.progress import bar

        chosen = spectrum.select_checkpoints(run, self.settings)
        some = spectrum.density_checkpoints(self.settings, chosen)
        before = {"hessian": 0, "ntk": len(chosen), "density": 2 * len(chosen)}
        densities = len(spectrum.DENSITIES) * len(some) * self.settings.density
        total = 2 * len(chosen) + densities
        with bar("spectrum", total, quiet=self.quiet) as advance:

            def told(what: str, done: int) -> None:
                advance(before[what] + done)
                if stop():
                    raise KeyboardInterrupt

            return spectrum.compute_spectrum(run, self.settings, parts=parts, progress=told)


@dataclass(frozen=True)
class Plot:
    """Draw the figures of a run again, from RUN.h5 and RUN.spectrum.h5, without computing."""

    path: RunPath
    """Run file."""
    spectrum: Path | None = None
    """Result file of `spectrum`; none means RUN.spectrum.h5."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Name of the figures without suffix; none means that of the run file."""
    zoom: str | None = None
    """Steps a:b of the figure's second column; none means around the second burst."""

    def execute(self) -> int:
        """Draws."""
        zoom = _span(self.zoom)
        run = open_recorded(self.path, 0)
        from dlf_dynamics.analysis.spectrum import default_path, load_spectrum

        found = load_spectrum(self.spectrum or default_path(self.path), run)
        _draw(run, found, self.output or self.path.with_suffix(""), zoom)
        return 0


@dataclass(frozen=True)
class Info:
    """Show what a run file holds: status, configuration, last values and provenance."""

    path: RunPath
    """Run file."""
    json: bool = False
    """Print JSON."""

    def execute(self) -> int:
        """Prints."""
        run = open_recorded(self.path, 0)
        content = {
            "path": str(run.path),
            "run_id": run.run_id,
            "status": run.status,
            "steps": len(run.steps),
            "checkpoints": len(run.checkpoint_steps),
            "num_params": run.num_params,
            "last": {
                name: values[-1].tolist() for name, values in run.scalars.items() if len(values)
            },
            "data_sha256": run.data_sha256,
            "config": dataclasses.asdict(run.config),
            "provenance": dict(run.provenance),
        }
        if self.json:
            print(json.dumps(content, indent=1))
        else:
            _print_nested(content)
        return 0


@dataclass(frozen=True)
class Validate:
    """Check a run file against its schema; exits with 1 and a line for each fault found."""

    path: RunPath
    """Run file."""

    def execute(self) -> int:
        """Checks."""
        from dlf_dynamics.validation import problems

        found = problems(self.path)
        for line in found:
            print(f"{self.path}: {line}")
        if not found:
            print(f"{self.path}: valid")
        return INVALID if found else 0


@dataclass(frozen=True)
class Repair:
    """Rewrite a run file whose writer was killed, keeping every complete row."""

    path: RunPath
    """Run file; it is replaced once the new one is whole."""

    def execute(self) -> int:
        """Repairs."""
        from dlf_dynamics.runfile import complete_steps, copy, open_file

        copy(self.path, self.path)
        with open_file(self.path) as file:
            rows = len(complete_steps(file, "steps"))
            checkpoints = len(complete_steps(file, "checkpoints"))
        print(f"repaired {self.path}: {rows} steps, {checkpoints} checkpoints")
        return 0


COMMANDS: dict[str, type] = {
    "train": Train,
    "spectrum": Spectrum,
    "plot": Plot,
    "info": Info,
    "validate": Validate,
    "repair": Repair,
}


def _refuse_changes(recorded: dict[str, Any], asked: dict[str, Any], prefix: str = "") -> None:
    """A resumed run keeps its configuration, but for the number of steps."""
    for key, value in recorded.items():
        if isinstance(value, dict):
            _refuse_changes(value, asked[key], f"{prefix}{key}.")
        elif value != asked[key] and prefix + key != "steps":
            raise ConfigError(
                f"--resume continues the run as it was configured: {prefix}{key} is {value!r} "
                f"there, not {asked[key]!r}; only steps may change"
            )


def _span(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if not found or int(found[1]) >= int(found[2]):
        raise ConfigError(f"zoom is {text!r}; expected a:b with a < b, for example 8000:10500")
    return int(found[1]), int(found[2])


def _draw(run: Any, spectrum: Any, stem: Path, zoom: tuple[int, int] | None) -> None:
    from dlf_dynamics.analysis import plots

    written = plots.save(plots.run_figure(run, spectrum, zoom), stem)
    second = stem.with_name(f"{stem.name}.bifurcation")
    written += plots.save(plots.bifurcation_figure(run, spectrum), second)
    if spectrum.densities:
        from dlf_dynamics.analysis.density_plots import density_figure

        third = stem.with_name(f"{stem.name}.density")
        written += plots.save(density_figure(spectrum), third)
    say("wrote " + ", ".join(map(str, written)))


def _verify(run: Any, spectrum: Any, *, quiet: bool) -> int:
    from dlf_dynamics.analysis.verification import verify_dense
    from dlf_dynamics.progress import bar

    with bar("dense check", len(spectrum.hessian.steps), quiet=quiet) as advance:
        found = verify_dense(run, spectrum, advance)
    for line in found.lines():
        say(line)
    return 0


def _print_nested(content: dict[str, Any], indent: str = "") -> None:
    for key, value in content.items():
        if isinstance(value, dict):
            print(f"{indent}{key}:")
            _print_nested(value, indent + "  ")
        else:
            print(f"{indent}{key}: {value}")


def say(line: str) -> None:
    """Tells the person at the terminal, on stderr, so that stdout holds results only."""
    print(line, file=sys.stderr)


def fail(line: str, code: int) -> int:
    """Says what went wrong; returns the exit code."""
    say(f"dlf-dynamics: {line}")
    return code
