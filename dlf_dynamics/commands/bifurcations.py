"""`dlf-dynamics bifurcations` and `dlf-dynamics check`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

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
    show,
)
from dlf_dynamics.config import BifurcationConfig
from dlf_dynamics.errors import StaleError
from dlf_dynamics.startup import check_writable, open_recorded

if TYPE_CHECKING:
    from dlf_dynamics.parts import Parts
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
    no_figures: bool = False
    """Leave the figures out."""
    quiet: bool = False
    """No progress bar."""
    threads: int = 0
    """Cores of a CPU to use; 0 takes all. On small problems each treats checkpoints of its own."""
    devices: int = 0
    """Devices to use, GPUs or parts of a CPU; 0 takes all GPUs. The examples of a large network and
    the vectors are shared out over them, of small ones the checkpoints."""

    def execute(self) -> int:
        """Computes, writes, draws and prints."""
        run = open_recorded(self.path, self.threads, self.problem, devices=self.devices)
        from dlf_dynamics.analysis.instabilities import bifurcations, summary
        from dlf_dynamics.resultfile import write_whole

        output = self.output or bifurcations.default_path(self.path)
        check_writable(output)
        found = _computed(run, self.settings, output, resume=self.resume, quiet=self.quiet)
        if isinstance(found, int):
            return found
        table = output.with_suffix(".csv")
        write_whole(table, summary.csv_text(found.instabilities).encode())
        say(f"wrote {output}, {table}")
        if not self.no_figures:
            draw_bifurcations(found, FigureFiles(self.path.with_suffix("")))
        if self.json:
            print(json.dumps(summary.as_dict(found), indent=1))
        else:
            show(summary.instabilities_table(found), *summary.closing_lines(found))
        return 0


@dataclass(frozen=True)
class Check:
    """Tell whether a run stayed below its instability threshold, and if not, where it did not.

    The answer is about the sharpness at the centre of each three iterates. It reads
    RUN.bifurcations.h5, or computes and writes it: the sharpness at each EVERY-th step, and at each
    step around a crossing. With --fail-on-crossing, a run that was not above at any of these is
    looked at at each step, which takes up to EVERY / 2 times as long again, and the exit code is 0
    when it surely was below at each step (of --steps, if these are given), 1 when it was above at
    one, and 4 when that cannot be told: no threshold, steps that were not looked at (--coarse),
    eigenvalues that did not converge, steps on neither side, a run that diverged or is not
    finished, a replay that misses the checkpoints. Ctrl-C ends it after the part at hand; --resume
    goes on.

      dlf-dynamics check run.h5 --fail-on-crossing
    """

    path: RunPath
    """Run file."""
    fail_on_crossing: bool = False
    """Tell the answer by the exit code, and look at each step before it is 0."""
    coarse: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Do not look at each step: a run that was not seen above then exits with 4."""
    problem: ProblemName = None
    settings: Annotated[BifurcationConfig, Flattened] = field(default_factory=BifurcationConfig)
    resume: bool = False
    """Go on with an analysis that was interrupted or killed."""
    quiet: bool = False
    """No progress bar."""
    threads: int = 0
    """Cores of a CPU to use; 0 takes all."""
    devices: int = 0
    """Devices to use, GPUs or parts of a CPU; 0 takes all GPUs."""

    def execute(self) -> int:
        """Answers."""
        run = open_recorded(self.path, self.threads, self.problem, devices=self.devices)
        from dlf_dynamics.analysis.instabilities import bifurcations, summary

        output = bifurcations.default_path(self.path)
        found = _known(output, run)
        # Diagrams have nothing to say here.
        settings = dataclasses.replace(self.settings, diagrams="none")
        if found is None or dataclasses.replace(found.config, diagrams="none") != settings:
            check_writable(output)
            found = _computed(run, settings, output, resume=self.resume, quiet=self.quiet)
            if isinstance(found, int):
                return found
            say(f"wrote {output}")
        if self.fail_on_crossing and not self.coarse:
            found = self._at_each_step(run, found, output)
            if isinstance(found, int):
                return found
        answer, lines = summary.verdict(found)
        show(*lines, *found.source.caution)
        codes = {"below": 0, "above": CROSSED, "undecided": UNDECIDED}
        return codes[answer] if self.fail_on_crossing else 0

    def _at_each_step(self, run: Run, found: Any, output: Path) -> Any:
        """What was found, with the steps that were not looked at, unless it was above somewhere."""
        from dlf_dynamics.analysis.instabilities import bifurcations, summary
        from dlf_dynamics.analysis.instabilities.location import not_looked_at

        missing = len(not_looked_at(found.motion))
        if not missing or summary.verdict(found)[0] == "above" or not summary.has_threshold(found):
            return found
        check_writable(output)
        say(
            f"not above at the {len(found.motion.looked_at)} steps looked at; now at each of the "
            f"other {missing}"
        )
        look = partial(bifurcations.look_at_each_step, run, found)
        again = f"dlf-dynamics check {run.path} --fail-on-crossing --resume"
        bar = partial(_with_progress, "steps", missing, look, quiet=self.quiet)
        found = _written(run, found.config, output, bar, again, resume=self.resume)
        if not isinstance(found, int):
            say(f"wrote {output}")
        return found


def _known(output: Path, run: Run) -> Any:
    """The bifurcations on file, of the run as it is now; none without them, once that was said."""
    from dlf_dynamics.analysis.instabilities import bifurcations

    try:
        return bifurcations.load_bifurcations(output, run) if output.exists() else None
    except StaleError as error:
        say(f"{error.found}; computing anew")
        return None


def _computed(
    run: Run, settings: BifurcationConfig, output: Path, *, resume: bool, quiet: bool
) -> Any:
    """The bifurcations, written; or the exit code of an interruption."""
    from dlf_dynamics.analysis.instabilities import bifurcations

    start, end = bifurcations.span_of_steps(run, settings)
    compute = partial(bifurcations.compute_bifurcations, run, settings)
    bar = partial(_with_progress, "bifurcations", end - start, compute, quiet=quiet)
    again = f"dlf-dynamics bifurcations {run.path} --resume"
    return _written(run, settings, output, bar, again, resume=resume)


def _written(
    run: Run,
    settings: BifurcationConfig,
    output: Path,
    work: Callable[..., Any],
    again: str,
    *,
    resume: bool,
) -> Any:
    """What the work finds, which is given parts and when to stop, once it is written.

    The exit code where it was interrupted.
    """
    from dlf_dynamics.analysis.instabilities import bifurcations

    chosen = dataclasses.asdict(settings)
    with kept_parts(output, "bifurcations", run, chosen, resume=resume) as parts:
        found = interruptible(lambda stop: work(parts=parts, stop=stop), again)
        if not isinstance(found, int):
            bifurcations.save_bifurcations(found, output)
            parts.clear()
    return found


def _with_progress(
    what: str,
    total: int,
    work: Callable[..., Any],
    *,
    parts: Parts,
    stop: Callable[[], bool],
    quiet: bool,
) -> Any:
    """What the work returns, which is given parts and whom to tell how many steps are done."""
    from dlf_dynamics.progress import bar

    with bar(what, total, quiet=quiet) as advance:

        def told(done: int) -> None:
            advance(done)
            if stop():
                raise KeyboardInterrupt

        return work(parts=parts, progress=told)
