"""`Task`: folder and size of a reproduction; its runs, analyses and studies, computed only once.

Everything that takes long is kept in files of the folder. What is finished there is not computed
again, and what was interrupted is continued, so that starting a reproduction again resumes it.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax
from jaxtyping import PyTree
from matplotlib.figure import Figure

from dlf_dynamics.analysis.pipeline import analysis_named
from dlf_dynamics.analysis.reproduction.page import Page
from dlf_dynamics.analysis.studies.study import Study
from dlf_dynamics.analysis.studies.studyfile import StudyResults, read_study
from dlf_dynamics.analysis.studies.sweep import sweep
from dlf_dynamics.analysis.style import save
from dlf_dynamics.config import RunConfig
from dlf_dynamics.errors import FileError, StaleError
from dlf_dynamics.loop import Setup
from dlf_dynamics.opening import open_run
from dlf_dynamics.problem import Problem
from dlf_dynamics.progress import bar
from dlf_dynamics.recorder import Recorder
from dlf_dynamics.resultfile import write_whole
from dlf_dynamics.run import Run
from dlf_dynamics.training import resume, train

Budget = Literal["tiny", "small", "full"]
"""How much is computed: to try it out, within hours of one core, or as published."""

_SECONDS = "seconds.json"
"""File with the seconds that everything but studies took, whose files have their own."""


@dataclass(frozen=True)
class Task:
    """Folder, size and options of a reproduction.

    Attributes:
        folder: existing folder for data and figures.
        budget: how much is computed.
        data: file or folder of data that are not part of this package.
        processes: number of processes for a study, on this machine; 0 chooses one per core.
        overwrite: whether to start anew instead of resuming.
        quiet: whether to show no progress.
        stop: called from time to time; when it returns true, KeyboardInterrupt is raised.
        partial: whether to make a page from what is on file, and to compute nothing.
    """

    folder: Path
    budget: Budget = "small"
    data: Path | None = None
    processes: int = 0
    overwrite: bool = False
    quiet: bool = True
    stop: Callable[[], bool] = lambda: False
    partial: bool = False

    def trained(self, config: RunConfig, name: str = "run") -> Run:
        """The run of a configuration, in NAME.h5.

        Raises:
            FileError: when the file is of another configuration.
            KeyboardInterrupt: when it was stopped.
        """
        path = self.folder / f"{name}.h5"
        anew = self.overwrite or not path.exists()
        if not anew:
            known = open_run(path)
            if known.config != config:
                raise FileError(_of_another(path))
            if known.status == "complete":
                return known
        with self._training(path, config.steps) as advance:
            if anew:
                run = train(
                    config, path, overwrite=self.overwrite, progress=advance, stop=self.stop
                )
            else:
                run = resume(path, progress=advance, stop=self.stop)
        if run.status == "interrupted":
            raise KeyboardInterrupt
        return run

    def recorded(self, setup: Setup, steps: int, every: int, name: str) -> Run:
        """The run of a custom training loop, in NAME.h5; one that was stopped starts anew.

        Args:
            setup: full-batch problem, optimizer and initial parameters.
            steps: number of updates.
            every: steps between checkpoints.
            name: name of the file.

        Raises:
            FileError: when the file is of another loop.
            KeyboardInterrupt: when it was stopped.
        """
        path, settings = self.folder / f"{name}.h5", {"steps": steps, "every": every}
        if path.exists() and not self.overwrite:
            known = open_run(path, setup)
            if known.settings != settings:
                raise FileError(_of_another(path))
            if known.status == "complete":
                return known
        recorder = Recorder(
            path,
            setup.problem,
            optimizer=setup.optimizer,
            config=settings,
            every=every,
            name=name,
            overwrite=True,
        )
        with self._training(path, steps) as advance, recorder:
            for step, state in enumerate(islice(_states(setup), steps + 1)):
                recorder.record(step, *state)
                if step % every == 0:
                    advance(step)
                    if self.stop():
                        raise KeyboardInterrupt
        return open_run(path, setup)

    @contextmanager
    def _training(self, path: Path, steps: int) -> Iterator[Callable[[int], None]]:
        """Shows and times the training of a run; yields the function that takes the steps done."""
        self._refuse_if_partial(path)
        with (
            self._spent(f"{path.stem}: training"),
            bar("training", steps, quiet=self.quiet) as advance,
        ):
            yield advance

    def _refuse_if_partial(self, path: Path) -> None:
        """Raises FileError for a partial page, for which nothing is computed."""
        if self.partial:
            raise FileError(
                f"{path} is not there, not finished, or of other settings; leave out --partial to "
                "compute it"
            )

    def analysed(self, run: Run, config: Any, name: str = "spectrum") -> Any:
        """The result of an analysis of a run, such as its spectrum, in a file beside the run's.

        A result on file is used if it belongs to the run in its present state, and has these
        settings.

        Args:
            run: run to be analysed.
            config: settings of the analysis.
            name: name of the analysis.

        Raises:
            FileError: when another process writes it.
            KeyboardInterrupt: when it was stopped.
        """
        analysis = analysis_named(name)
        path = analysis.path(run.path)
        if path.exists() and not self.overwrite:
            with suppress(StaleError):
                known = analysis.load(path, run)
                if getattr(known, "asked", getattr(known, "config", None)) == config:
                    return known
        self._refuse_if_partial(path)
        with self._spent(f"{run.path.stem}: {name}"):
            return analysis.performed(
                run,
                config,
                path,
                resume=False if self.overwrite else None,
                quiet=self.quiet,
                stop=self.stop,
            )

    def swept(self, study: Study, name: str = "study", beside: Sequence[str] = ()) -> StudyResults:
        """The outcomes of a study, in NAME.h5.

        Args:
            study: runs and measures.
            name: name of the file.
            beside: folders next to this one; the file of one that has the same study under this
                name is used instead.

        Raises:
            FileError: when the file is of another study, or all its runs failed.
            KeyboardInterrupt: when it was stopped.
        """
        path = self._study_path(study, name, beside)
        if self.partial:
            if not path.exists():
                self._refuse_if_partial(path)
            results = read_study(path)
            if results.study != study:
                raise FileError(f"{path} is of another study; name another folder with -o")
            return _not_all_failed(results)
        with bar("runs", len(study), quiet=self.quiet) as advance:
            results = sweep(
                study,
                path,
                processes=self.processes,
                resume=not self.overwrite,
                retry_failed=True,
                overwrite=self.overwrite,
                progress=advance,
                stop=self.stop,
            )
        if not results.complete or self.stop():  # failed runs keep their rows while retried
            raise KeyboardInterrupt
        return _not_all_failed(results)

    def _study_path(self, study: Study, name: str, beside: Sequence[str]) -> Path:
        own = self.folder / f"{name}.h5"
        if own.exists() or self.overwrite:
            return own
        for folder in beside:
            path = self.folder.parent / folder / own.name
            if path.exists() and read_study(path).study == study:
                return path
        return own

    def kept(self, name: str, of: Any, compute: Callable[[], Any]) -> Any:
        """A small value that takes long to compute, kept in NAME.json.

        Args:
            name: name of the file.
            of: JSON value that determines the result; a file with another one is replaced.
            compute: function that returns the result as a JSON value.

        Raises:
            KeyboardInterrupt: when it was stopped.
        """
        path = self.folder / f"{name}.json"
        if path.exists() and not self.overwrite:
            known = json.loads(path.read_text("utf-8"))
            if known["of"] == of:
                return known["value"]
        self._refuse_if_partial(path)
        if self.stop():
            raise KeyboardInterrupt
        with self._spent(name):
            value = compute()
        write_whole(path, json.dumps({"of": of, "value": value}, indent=1).encode())
        return value

    def has(self, name: str) -> bool:
        """Whether something was kept under this name."""
        return (self.folder / f"{name}.json").exists()

    def of_seeds(self, seeds: Sequence[int], name: str) -> list[int]:
        """The seeds; for a partial page, those with a value kept as NAME-SEED.

        Raises:
            FileError: when there is none.
        """
        if not self.partial:
            return list(seeds)
        known = [seed for seed in seeds if self.has(f"{name}-{seed}")]
        if not known:
            self._refuse_if_partial(self.folder / f"{name}-{seeds[0]}.json")
        return known

    @contextmanager
    def _spent(self, part: str) -> Iterator[None]:
        """Adds the seconds spent in the block to those of a part, also when it is interrupted."""
        start, path = time.monotonic(), self.folder / _SECONDS
        try:
            yield
        finally:
            known = _seconds_in(path)
            before = 0.0 if self.overwrite else known.get(part, 0.0)
            known[part] = before + time.monotonic() - start
            write_whole(path, json.dumps(known, indent=1).encode())

    def _cost(self, *studies: StudyResults) -> str:
        """Time that the reproduction took: the runs of studies, and all else."""
        runs = sum(float(np.nansum(results.columns["seconds"])) for results in studies)
        parts = runs + sum(_seconds_in(self.folder / _SECONDS).values())
        if not parts:
            return "not measured"
        return f"{_in_words(parts)} of wall time, runs one after the other, on the machine below"

    def drawn(self, figure: Figure, name: str) -> str:
        """Writes a figure; returns the name of the file.

        Raises:
            FileError: when it cannot be written.
        """
        (path,) = save(figure, self.folder / name, formats=("png",))
        return path.name

    def made(
        self,
        name: str,
        provenance: Mapping[str, Any],
        facts: Mapping[str, str],
        *studies: StudyResults,
    ) -> dict[str, str]:
        """How a page was made: command, versions, cost, machine, and facts of the reproduction."""
        options = ["--data PATH"] if self.data is not None else []
        options += ["--partial"] if self.partial else []
        command = " ".join([f"dlf-dynamics reproduce {name} --budget {self.budget}", *options])
        packages = provenance["packages"]
        versions = [f"dlf-dynamics {provenance['dlf_dynamics']}"]
        versions += [f"{package} {packages[package]}" for package in ("jax", "optax", "numpy")]
        machine = f"{provenance['device']}, {_processor() or provenance['system']}"
        return {
            "command": f"`{command}`",
            "versions": ", ".join(versions),
            "cost": self._cost(*studies),
            **facts,
            "machine": machine,
        }


@dataclass(frozen=True)
class Reproduction:
    """A published result that can be made again.

    Attributes:
        name: name for the command line.
        about: description in a line.
        make: function that computes what is missing, draws, and compares.
        takes: how long that takes at the budget `small`, in words.
        dtype: type of numbers.
        sweeps: whether it is a study, whose runs are distributed over processes.
    """

    name: str
    about: str
    make: Callable[[Task], Page]
    takes: str
    dtype: Literal["float64", "float32"] = "float64"
    sweeps: bool = True


def counted(statuses: Sequence[str | None]) -> str:
    """The number of runs, and how many of them diverged, failed or are not done.

    >>> counted(["complete", "complete", "diverged"])
    '3, 1 of which diverged'
    >>> counted(["complete", None])
    '2, 1 of which not done'
    """
    kinds = {"diverged": "diverged", "failed": "failed", None: "not done"}
    counts = {name: statuses.count(status) for status, name in kinds.items()}
    lost = [f"{count} of which {name}" for name, count in counts.items() if count]
    return ", ".join([str(len(statuses)), *lost])


def _in_words(seconds: float) -> str:
    """A time in seconds, minutes or hours.

    >>> _in_words(40), _in_words(600), _in_words(9000)
    ('40 s', '10 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _states(setup: Setup) -> Iterator[tuple[PyTree, Any]]:
    """Parameters and optimizer state before each update, without end."""
    optimizer = setup.optimizer
    assert optimizer is not None

    @jax.jit
    def updated(problem: Problem, params: PyTree, state: Any) -> tuple[PyTree, Any]:
        change, state = optimizer.update(jax.grad(problem.objective)(params, 0), state, params)
        return optax.apply_updates(params, change), state

    params, state = setup.params, optimizer.init(setup.params)
    while True:
        yield params, state
        params, state = updated(setup.problem, params, state)


def _not_all_failed(results: StudyResults) -> StudyResults:
    """The results, unless all runs failed: there is no page then.

    Raises:
        FileError: when all runs failed.
    """
    statuses = [status for status in results.statuses if status is not None]
    if statuses and set(statuses) == {"failed"}:
        first = results.messages[results.statuses.index("failed")]
        raise FileError(
            f"{results.path}: all {len(statuses)} runs failed, the first with: {first}; remove the "
            "cause and start again, which repeats them"
        )
    return results


def _of_another(path: Path) -> str:
    return (
        f"{path} is of another budget or version; write elsewhere with -o, or replace it with "
        "--overwrite"
    )


def _processor() -> str:
    """Name of the processor, as far as the system gives it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _seconds_in(path: Path) -> dict[str, float]:
    return json.loads(path.read_text()) if path.exists() else {}
