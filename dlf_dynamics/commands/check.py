"""`dlf-dynamics check`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from dlf_dynamics.commands.analyses import computed
from dlf_dynamics.commands.terminal import (
    CROSSED,
    UNDECIDED,
    Flattened,
    ProblemName,
    RunPath,
    say,
    show,
)
from dlf_dynamics.config import BifurcationConfig, EdgeConfig
from dlf_dynamics.startup import check_writable, open_recorded

if TYPE_CHECKING:
    from dlf_dynamics.analysis.pipeline import Analysis, Work
    from dlf_dynamics.run import Run


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
    finished, a replay that misses the checkpoints. Ctrl-C stops after the current part;
    --resume goes on from there.

    Of a run with mini-batches it tells how many steps raised their own loss, and where batches that
    are drawn independently lose stability in mean square: from RUN.edge.h5, or it computes and
    writes it. Then 0 and 1 are told of runs that draw their batches so (--batch-sampling
    independent), 0 only where each step is a checkpoint; all else is 4, also of shuffled epochs.

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
    json: bool = False
    """Print JSON, as `bifurcations --json` does, or `edge --json` of a run with mini-batches, with
    the answer as `verdict` and `because`."""
    quiet: bool = False
    """No progress bar."""
    threads: int = 0
    """Cores of a CPU to use; 0 takes all."""
    devices: int = 0
    """Devices to use, GPUs or parts of a CPU; 0 takes all GPUs."""

    def execute(self) -> int:
        """Answers."""
        run = open_recorded(self.path, self.threads, self.problem, devices=self.devices)
        from dlf_dynamics.analysis.pipeline import analysis_named

        if run.dynamics.batch_size is not None:
            return self._of_batches(run)
        from dlf_dynamics.analysis.instabilities.summary import verdict

        analysis = analysis_named("bifurcations")
        output = analysis.path(self.path)
        found = analysis.known(output, run)
        # Diagrams and maps of pulses have nothing to say here.
        without = {"diagrams": "none", "pulses": "none", "cycles": "none", "pulse_modes": 3}
        settings = dataclasses.replace(self.settings, **without)
        how: dict[str, Any] = {"resume": self.resume, "quiet": self.quiet}
        if found is None or dataclasses.replace(found.config, **without) != settings:
            check_writable(output)
            found = computed(analysis, run, settings, output, **how)
            if isinstance(found, int):
                return found
            say(f"wrote {output}")
        if self.fail_on_crossing and not self.coarse:
            found = _at_each_step(analysis, run, found, output, **how)
            if isinstance(found, int):
                return found
        return self._told(analysis, found, *verdict(found))

    def _of_batches(self, run: Run) -> int:
        """Answers for a run with mini-batches."""
        from dlf_dynamics.analysis.edge.summary import verdict
        from dlf_dynamics.analysis.pipeline import analysis_named

        analysis = analysis_named("edge")
        output = analysis.path(self.path)
        found = analysis.known(output, run)
        settings = self._of_edge(run, found)
        if found is None or not _answers(found, settings):
            check_writable(output)
            again = f"dlf-dynamics check {run.path} --resume"
            how: dict[str, Any] = {"resume": self.resume, "quiet": self.quiet}
            found = computed(analysis, run, settings, output, again=again, **how)
            if isinstance(found, int):
                return found
            say(f"wrote {output}")
        return self._told(analysis, found, *verdict(found))

    def _of_edge(self, run: Run, known: Any) -> EdgeConfig:
        """Where to look: at each checkpoint, if these are all steps and the exit code counts.

        If epochs were enumerated by what is on file, they are again: they decide.
        """
        asked = self.settings
        settings = EdgeConfig(
            steps=asked.steps,
            max_matvecs=asked.max_matvecs,
            seed=asked.seed,
            epochs=known is not None and known.config.epochs,
        )
        steps = run.checkpoint_steps
        each = len(steps) == len(run.steps) and not self.coarse and self.fail_on_crossing
        return dataclasses.replace(settings, checkpoints=len(steps)) if each else settings

    def _told(
        self, analysis: Analysis[Any, Any], found: Any, answer: str, lines: Sequence[str]
    ) -> int:
        """Prints the answer; returns the exit code."""
        if self.json:
            print(json.dumps(analysis.as_dict(found), indent=1))
        else:
            show(*lines, *found.source.caution)
        codes = {"below": 0, "above": CROSSED, "undecided": UNDECIDED}
        return codes[answer] if self.fail_on_crossing else 0


def _answers(found: Any, settings: EdgeConfig) -> bool:
    """Whether what is on file is of the run's own batches and steps, at as many checkpoints."""
    enough = found.config.checkpoints >= settings.checkpoints
    return found.batches.own and found.config.steps == settings.steps and enough


def _at_each_step(
    analysis: Analysis[Any, Any], run: Run, found: Any, output: Path, **how: Any
) -> Any:
    """What was found, with the steps that were not looked at, unless it was above somewhere."""
    from dlf_dynamics.analysis.instabilities.bifurcations import look_at_each_step
    from dlf_dynamics.analysis.instabilities.location import not_looked_at
    from dlf_dynamics.analysis.instabilities.summary import has_threshold, verdict

    missing = len(not_looked_at(found.motion))
    if not missing or verdict(found)[0] == "above" or not has_threshold(found):
        return found
    check_writable(output)
    say(
        f"not above at the {len(found.motion.looked_at)} steps looked at; now at each of the "
        f"other {missing}"
    )

    def work(given: Work) -> Any:
        return look_at_each_step(run, found, parts=given.parts, progress=given.progress)

    again = f"dlf-dynamics check {run.path} --fail-on-crossing --resume"
    found = computed(
        analysis, run, found.config, output, again=again, work=work, total=missing, **how
    )
    if not isinstance(found, int):
        say(f"wrote {output}")
    return found
