"""`dlf-dynamics train`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from dlf_dynamics.commands.terminal import DIVERGED, Flattened, fail, say
from dlf_dynamics.config import RunConfig
from dlf_dynamics.configfile import load_toml, preset
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.presets import PRESETS
from dlf_dynamics.startup import check_writable, problem_size, recorded_config, start_jax

if TYPE_CHECKING:
    from dlf_dynamics.progress import Advance
    from dlf_dynamics.run import Run


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
    """Continue the run in the output file, bit for bit as if it had not been interrupted. A larger
    --steps extends it."""
    overwrite: bool = False
    """Replace the output file if it exists."""
    quiet: bool = False
    """No progress bar."""
    threads: int = 0
    """Threads of XLA on a CPU; 0 chooses one for small problems and all cores for others."""
    run: Annotated[RunConfig, Flattened] = field(default_factory=lambda: PRESETS["published"])

    def base(self) -> RunConfig:
        """The configuration that options override: preset, CONFIG.toml, or the run to resume.

        Raises:
            ConfigError: when the preset is unknown, CONFIG.toml cannot be used, or one of them is
                given although the run to resume has a configuration.
            FileError: when the run to resume cannot be read.
        """
        if self.resume:
            for given, what in ((self.preset, "--preset"), (self.config, "CONFIG.toml")):
                if given is not None:
                    raise ConfigError(
                        f"{what} is {str(given)!r}; expected none with --resume, as "
                        f"{self.output} has its configuration"
                    )
            return recorded_config(self.output)
        base = None if self.preset is None else preset(self.preset)
        if self.config is not None:
            return load_toml(self.config, base)
        return base or PRESETS["published"]

    def execute(self) -> int:
        """Trains or resumes the run."""
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

    def _train(self, advance: Advance, stop: Callable[[], bool]) -> Run:
        from dlf_dynamics import training

        def watch(scalars: Mapping[str, float]) -> None:
            loss, accuracy = scalars["loss"], scalars["accuracy"]
            edge = scalars["realized_edge"]
            suffix = "" if edge != edge else f", realized edge {edge:.3g}"
            advance.note(f", loss {loss:.4g}, accuracy {accuracy:.3f}{suffix}")

        if not self.resume:
            return training.train(
                self.run,
                self.output,
                overwrite=self.overwrite,
                progress=advance,
                stop=stop,
                watch=watch,
            )
        recorded = recorded_config(self.output)
        _refuse_changes(dataclasses.asdict(recorded), dataclasses.asdict(self.run))
        return training.resume(
            self.output, steps=self.run.steps, progress=advance, stop=stop, watch=watch
        )

    def _complete(self, run: Run, signal: int) -> int:
        say(f"wrote {self.output}: {run.outcome}")
        analysis = "spectrum" if run.dynamics.batch_size is None else "edge"
        say(f"next: dlf-dynamics {analysis} {self.output}")
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


def _refuse_changes(recorded: dict[str, Any], requested: dict[str, Any], prefix: str = "") -> None:
    """Raises ConfigError if the configuration of a resumed run changes in more than the steps."""
    for key, value in recorded.items():
        if isinstance(value, dict):
            _refuse_changes(value, requested[key], f"{prefix}{key}.")
        elif value != requested[key] and prefix + key != "steps":
            raise ConfigError(
                f"--resume continues the run as it was configured: {prefix}{key} is {value!r} "
                f"there, not {requested[key]!r}; only steps may change"
            )
