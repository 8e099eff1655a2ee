"""`dlf-dynamics bifurcations` and `dlf-dynamics check`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from dlf_dynamics.commands.figures import FigureFiles, draw_bifurcations
from dlf_dynamics.commands.terminal import (
    CROSSED,
    UNDECIDED,
    Flattened,
    ProblemName,
    RunPath,
    interruptible,
    kept_parts,
    say,
)
from dlf_dynamics.config import BifurcationConfig
from dlf_dynamics.startup import check_writable, open_recorded

if TYPE_CHECKING:
    from dlf_dynamics.resultfile import Parts
    from dlf_dynamics.run import Run


@dataclass(frozen=True)
class Bifurcations:
    """Find when, why and how a run became unstable.

    The steps are replayed from the checkpoints. Crossings of the threshold by the sharpness at the
    centres are located to the step; oscillations get onset, end, period, the lag and growth that
    the linear theory predicts beside those measured, the flip coefficient and the size that it and
    the rod equation predict. RUN.h5 is not changed; the results go to RUN.bifurcations.h5 and
    RUN.bifurcations.csv, the figures to RUN.instabilities.png and RUN.diagrams.png: the
    oscillations of the run, and orbit diagrams with the loss frozen at one step; and the same as
    SVG. Ctrl-C ends it after the part at hand; --resume goes on.

      dlf-dynamics bifurcations run.h5 --steps 8000:10500
    """

    path: RunPath
    """Run file."""
    problem: ProblemName = None
    settings: Annotated[BifurcationConfig, Flattened] = field(default_factory=BifurcationConfig)
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Result file; none means RUN.bifurcations.h5."""
    resume: bool = False
    """Go on with an analysis that was interrupted or killed."""
    json: bool = False
    """Print the events as JSON instead of a table."""
    figures: Annotated[bool, tyro.conf.FlagCreatePairsOff] = True
    """Draw the figures; --no-figures leaves them out."""
    quiet: bool = False
    """No progress bar."""
    threads: int = 0
    """Cores of a CPU to use; 0 takes all. On small problems each treats checkpoints of its own."""

    def execute(self) -> int:
        """Computes, writes, draws and prints."""
        run = open_recorded(self.path, self.threads, self.problem)
        from dlf_dynamics.analysis.bifurcation import bifurcations, report
        from dlf_dynamics.resultfile import write_whole

        output = self.output or bifurcations.default_path(self.path)
        check_writable(output)
        found = _computed(run, self.settings, output, resume=self.resume, quiet=self.quiet)
        if isinstance(found, int):
            return found
        table = output.with_suffix(".csv")
        write_whole(table, report.csv_text(found.instabilities).encode())
        say(f"wrote {output}, {table}")
        if self.figures:
            draw_bifurcations(found, FigureFiles(self.path.with_suffix("")))
        if self.json:
            print(json.dumps(report.summary(found), indent=1))
        else:
            console = Console()
            console.print(report.instabilities_table(found))
            for line in report.closing_lines(found):
                console.print(line, highlight=False)
        return 0


@dataclass(frozen=True)
class Check:
    """Tell whether a run stayed below its instability threshold, and if not, where it did not.

    It reads RUN.bifurcations.h5, or computes and writes it. With --fail-on-crossing the exit code
    is 0 when the run surely stayed below, 1 when it was above somewhere, and 4 when that cannot be
    told: no threshold, eigenvalues that did not converge, or steps on neither side.

      dlf-dynamics check run.h5 --fail-on-crossing
    """

    path: RunPath
    """Run file."""
    fail_on_crossing: bool = False
    """Tell the answer by the exit code."""
    problem: ProblemName = None
    settings: Annotated[BifurcationConfig, Flattened] = field(default_factory=BifurcationConfig)
    resume: bool = False
    """Go on with an analysis that was interrupted or killed."""
    quiet: bool = False
    """No progress bar."""
    threads: int = 0
    """Cores of a CPU to use; 0 takes all."""

    def execute(self) -> int:
        """Answers."""
        run = open_recorded(self.path, self.threads, self.problem)
        from dlf_dynamics.analysis.bifurcation import bifurcations, report

        output = bifurcations.default_path(self.path)
        found: Any = None
        if output.exists():
            found = bifurcations.load_bifurcations(output, run)
        # Diagrams have nothing to say here.
        settings = dataclasses.replace(self.settings, diagrams="none")
        if found is None or dataclasses.replace(found.config, diagrams="none") != settings:
            check_writable(output)
            found = _computed(run, settings, output, resume=self.resume, quiet=self.quiet)
            if isinstance(found, int):
                return found
            say(f"wrote {output}")
        answer, lines = report.verdict(found)
        for line in lines:
            print(line)
        codes = {"below": 0, "above": CROSSED, "undecided": UNDECIDED}
        return codes[answer] if self.fail_on_crossing else 0


def _computed(
    run: Run, settings: BifurcationConfig, output: Path, *, resume: bool, quiet: bool
) -> Any:
    """The bifurcations, written; or the exit code of an interruption."""
    from dlf_dynamics.analysis.bifurcation import bifurcations

    chosen = dataclasses.asdict(settings)
    parts = kept_parts(output, "bifurcations", run.run_id, chosen, resume=resume)
    again = f"dlf-dynamics bifurcations {run.path} --resume"
    found = interruptible(
        lambda stop: _with_progress(run, settings, parts, stop, quiet=quiet), again
    )
    if isinstance(found, int):
        return found
    bifurcations.save_bifurcations(found, output)
    parts.clear()
    return found


def _with_progress(
    run: Run, settings: BifurcationConfig, parts: Parts, stop: Callable[[], bool], *, quiet: bool
) -> Any:
    from dlf_dynamics.analysis.bifurcation import bifurcations
    from dlf_dynamics.progress import bar

    start, end = bifurcations.span_of_steps(run, settings)
    with bar("bifurcations", end - start, quiet=quiet) as advance:

        def told(done: int) -> None:
            advance(done)
            if stop():
                raise KeyboardInterrupt

        return bifurcations.compute_bifurcations(run, settings, parts=parts, progress=told)
