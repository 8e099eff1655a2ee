"""The command of each analysis of the registry."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro

from dlf_dynamics.commands.figures import FigureFiles
from dlf_dynamics.commands.terminal import (
    Flattened,
    ProblemName,
    RunPath,
    interruptible,
    say,
    show,
)
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.outputs import beside
from dlf_dynamics.startup import check_writable, leads, open_recorded

if TYPE_CHECKING:
    from dlf_dynamics.analysis.pipeline import Analysis
    from dlf_dynamics.run import Run


@dataclass(frozen=True)
class AnalysisCommand(ABC):
    """The command of any analysis: computes, writes, draws and prints."""

    path: RunPath
    """Run file."""
    problem: ProblemName = None
    settings: Any = None
    view: Any = None
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Result file; none means one beside the run file, named after the analysis."""
    resume: bool = False
    """Continue an analysis that was interrupted or killed, with the same settings."""
    json: bool = False
    """Print the result as JSON instead of a table."""
    no_figures: bool = False
    """Leave the figures out."""
    quiet: bool = False
    """No progress bar."""
    threads: int = 0
    """Cores of a CPU to use; 0 takes all. On small problems each core takes its own checkpoints."""
    devices: int = 0
    """Devices to use, GPUs or parts of a CPU; 0 takes all GPUs. For a large network the examples
    and vectors are distributed over them, for a small one the checkpoints."""
    follow: ClassVar[bool] = False  # an option of those analyses that can follow a run
    distributed: bool = False
    """This is one of several processes, on one machine or many, whose devices are used together:
    start the same command in each, by Slurm or another launcher (docs: several devices)."""

    @property
    @abstractmethod
    def analysis(self) -> Analysis[Any, Any]:
        """The analysis of this command."""

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
        if self.follow:
            check_writable(output)  # before waiting for the run
            result, run, code = self._followed(output)
        else:
            run = self._opened()
            check_writable(output)
            result = computed(
                analysis, run, self.settings, output, resume=self.resume, quiet=self.quiet
            )
            code = 0
        if isinstance(result, int) or not leads():
            return result if isinstance(result, int) else 0
        say(f"wrote {output}")
        if not self.no_figures:
            files = FigureFiles(beside(self.path, ""))
            for name, figure in analysis.figures(run, result, self.view):
                files.write(figure, name)
        if self.json:
            print(json.dumps(analysis.as_dict(result), indent=1))
        else:
            show(*analysis.lines(run, result))
        for line in analysis.verify(run, result, self.view, quiet=self.quiet):
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
        """Raises ConfigError if other options exclude following the run."""
        if self.follow and (self.distributed or self.resume):
            other = "distributed" if self.distributed else "resume"
            raise ConfigError(f"follow and {other} are both given; expected one of them")

    def _followed(self, output: Path) -> tuple[Any, Run, int]:
        """The last result (or the exit code if there is none), its run, and the exit code."""
        from dlf_dynamics.analysis.following import awaited, latest
        from dlf_dynamics.progress import Stop

        awaited(self.path, self._opened)
        stop = Stop("stopping after this look")
        with stop.listening():
            result, run = latest(
                self.path, self._opened, self.analysis, self.settings, output, stop=stop
            )
        if stop.signal:
            say(f"stopped following; {output} is of steps 0 to {run.source.last_step}")
        code = 128 + stop.signal if stop.signal else 0
        return (code if result is None else result), run, code


def computed(
    analysis: Analysis[Any, Any],
    run: Run,
    settings: Any,
    output: Path,
    *,
    again: str = "",
    **how: Any,
) -> Any:
    """The result of an analysis, after writing it; or the exit code of an interruption.

    Args:
        analysis: analysis to perform.
        run: run to analyse.
        settings: settings of the analysis.
        output: the result file.
        again: command that continues; empty means the command of the analysis.
        how: see `Analysis.performed`.
    """
    again = again or f"dlf-dynamics {analysis.name} {run.path} --resume"
    return interruptible(
        lambda stop: analysis.performed(run, settings, output, stop=stop, **how), again
    )


_FOLLOW = Annotated[
    bool,
    tyro.conf.arg(
        help="Analyse a run while it is written, each time that new checkpoints come, until its "
        "writer ends or you press Ctrl-C; wait for its file if it does not exist yet. Results of "
        "earlier checkpoints are not computed again."
    ),
]


def command_of(name: str) -> type:
    """The command of an analysis, made from its declaration."""
    from dlf_dynamics.analysis.pipeline import analysis_named

    analysis = analysis_named(name)
    own = [("follow", _FOLLOW, False)] if analysis.follows else []
    made = make_dataclass(
        type(analysis).__name__,
        [
            (
                "settings",
                Annotated[analysis.config, Flattened],
                field(default_factory=analysis.config),
            ),
            ("view", Annotated[analysis.view, Flattened], field(default_factory=analysis.view)),
            *own,
        ],
        bases=(AnalysisCommand,),
        frozen=True,
        namespace={"analysis": property(lambda self: analysis)},
    )
    made.__doc__ = type(analysis).__doc__
    return made
