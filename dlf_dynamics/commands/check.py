"""`dlf-dynamics check`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
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
from dlf_dynamics.outputs import beside
from dlf_dynamics.startup import check_writable, open_recorded

if TYPE_CHECKING:
    from dlf_dynamics.analysis.pipeline import Analysis, Work
    from dlf_dynamics.run import Run


@dataclass(frozen=True)
class Check:
    """Tell whether a run stayed below its instability threshold, and if not, where it did not.

    The answer is about the sharpness at the centre of each three iterates. It reads
    RUN.bifurcations.h5, or computes and writes it (to RUN.check.h5 if RUN.bifurcations.h5 has other
    settings): the sharpness at each EVERY-th step, and at each step around a crossing. With
    --fail-on-crossing, a run that was not above at any of these is then checked at each step, which
    takes up to EVERY / 2 times as long again. The exit code is 0 if the run was certainly below at
    each step (of --steps, if given), 1 if it was above at one, and 4 if that is undecided: no
    threshold, steps that were not checked (--coarse), eigenvalues that did not converge, steps on
    neither side, a run that diverged or is not finished, a replay that misses the checkpoints.
    Ctrl-C stops after the current part; --resume continues from there.

    For a run with mini-batches it reports how many steps raised their own loss, and where batches
    drawn independently lose stability in mean square: from RUN.edge.h5, which it computes and
    writes if necessary, likewise. Exit codes 0 and 1 are then possible only for runs that draw
    their batches like this (--batch-sampling independent), and 0 only if each step is a checkpoint;
    otherwise, and for shuffled epochs, it is 4.

      dlf-dynamics check run.h5 --fail-on-crossing
    """

    path: RunPath
    """Run file."""
    fail_on_crossing: bool = False
    """Give the answer as exit code, and check each step before it is 0."""
    coarse: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Do not check each step: the exit code is then 4 if the run was not above at any."""
    problem: ProblemName = None
    settings: Annotated[BifurcationConfig, Flattened] = field(default_factory=BifurcationConfig)
    resume: bool = False
    """Continue an analysis that was interrupted or killed."""
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
        # Diagrams and maps of pulses do not matter here.
        without = {"diagrams": "none", "pulses": "none", "cycles": "none", "pulse_modes": 3}
        settings = dataclasses.replace(self.settings, **without)
        result, output = _on_file(
            analysis,
            run,
            analysis.known(analysis.path(self.path), run),
            lambda known: dataclasses.replace(known.config, **without) == settings,
        )
        if result is None:
            result = self._computed(analysis, run, settings, output)
        if self.fail_on_crossing and not self.coarse and not isinstance(result, int):
            result = self._at_each_step(analysis, run, result, output)
        return result if isinstance(result, int) else self._told(analysis, result, *verdict(result))

    def _of_batches(self, run: Run) -> int:
        """Answers for a run with mini-batches."""
        from dlf_dynamics.analysis.edge.summary import verdict
        from dlf_dynamics.analysis.pipeline import analysis_named

        analysis = analysis_named("edge")
        known = analysis.known(analysis.path(self.path), run)
        settings = self._of_edge(run, known)
        result, output = _on_file(analysis, run, known, lambda known: _answers(known, settings))
        if result is None:
            result = self._computed(analysis, run, settings, output)
        return result if isinstance(result, int) else self._told(analysis, result, *verdict(result))

    def _computed(
        self, analysis: Analysis[Any, Any], run: Run, settings: Any, output: Path, **options: Any
    ) -> Any:
        """The result of an analysis, after writing it; or the exit code of an interruption."""
        check_writable(output)
        again = f"dlf-dynamics check {run.path} --resume"
        options = {"again": again, "resume": self.resume, "quiet": self.quiet} | options
        result = computed(analysis, run, settings, output, **options)
        if not isinstance(result, int):
            say(f"wrote {output}")
        return result

    def _at_each_step(
        self, analysis: Analysis[Any, Any], run: Run, result: Any, output: Path
    ) -> Any:
        """The result, extended to all steps unless the run was above somewhere."""
        from dlf_dynamics.analysis.instabilities.bifurcations import look_at_each_step
        from dlf_dynamics.analysis.instabilities.location import not_looked_at
        from dlf_dynamics.analysis.instabilities.summary import has_threshold, verdict

        missing = len(not_looked_at(result.motion))
        if not missing or verdict(result)[0] == "above" or not has_threshold(result):
            return result
        steps = len(result.motion.looked_at)
        say(f"not above at the {steps} steps checked; now checking the other {missing}")

        def work(given: Work) -> Any:
            return look_at_each_step(run, result, parts=given.parts, progress=given.progress)

        again = f"dlf-dynamics check {run.path} --fail-on-crossing --resume"
        options: dict[str, Any] = {"again": again, "work": work, "total": missing}
        return self._computed(analysis, run, result.config, output, **options)

    def _of_edge(self, run: Run, known: Any) -> EdgeConfig:
        """The settings: all checkpoints, if they are all steps and the exit code matters.

        Epochs are enumerated if they were in the existing result, as they decide.
        """
        given = self.settings
        settings = EdgeConfig(
            steps=given.steps,
            max_matvecs=given.max_matvecs,
            seed=given.seed,
            epochs=known is not None and known.config.epochs,
        )
        steps = run.checkpoint_steps
        each = len(steps) == len(run.steps) and not self.coarse and self.fail_on_crossing
        return dataclasses.replace(settings, checkpoints=len(steps)) if each else settings

    def _told(
        self, analysis: Analysis[Any, Any], result: Any, answer: str, lines: Sequence[str]
    ) -> int:
        """Prints the answer; returns the exit code."""
        if self.json:
            print(json.dumps(analysis.as_dict(result), indent=1))
        else:
            show(*lines, *result.source.caution)
        codes = {"below": 0, "above": CROSSED, "undecided": UNDECIDED}
        return codes[answer] if self.fail_on_crossing else 0


def _on_file(
    analysis: Analysis[Any, Any], run: Run, known: Any, answers: Callable[[Any], bool]
) -> tuple[Any, Path]:
    """The result that answers the question, or None; and the file that has it or will have it.

    A result with other settings is kept, as the user may need it: the answer then goes to another
    file.

    Args:
        analysis: the analysis that answers.
        run: the run.
        known: its result under the usual name, or None.
        answers: whether a result has the settings of the question.
    """
    output = analysis.path(run.path)
    if known is not None and not answers(known):
        output = beside(run.path, ".check.h5")
        known = analysis.known(output, run)
    return (known if known is not None and answers(known) else None), output


def _answers(result: Any, settings: EdgeConfig) -> bool:
    """Whether a result is about the run's own batches and these steps, at enough checkpoints."""
    enough = result.config.checkpoints >= settings.checkpoints
    return result.batches.own and result.config.steps == settings.steps and enough
