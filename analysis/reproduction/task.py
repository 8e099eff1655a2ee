"""`Task`: where and how large a reproduction is made; runs and studies of it, found again if done.

Everything that takes long is kept in files of the folder. What is finished there is not computed
again, and what was interrupted goes on, so that a reproduction is continued by starting it again.
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
"""What was computed beside studies, whose files tell their own seconds."""


@dataclass(frozen=True)
class Task:
    """What a reproduction is given.

    Attributes:
        folder: for data and figures; it exists.
        budget: how much is computed.
        data: file or folder of data that are not part of this package.
        processes: of a study, on this machine; 0 chooses one per core.
        overwrite: whether to start anew instead of going on.
        quiet: whether to show no progress.
        stop: asked from time to time; when true, what is computed raises KeyboardInterrupt.
        partial: whether to take of a study what is done, and to compute nothing more of it.
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
        with (
            self._spent(f"{name}: training"),
            bar("training", config.steps, quiet=self.quiet) as advance,
        ):
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
        """The run of a custom training loop, in NAME.h5; one that was stopped is made anew.

        Args:
            setup: full-batch problem, optimizer and initial parameters.
            steps: number of updates.
            every: steps between checkpoints.
            name: of the file.

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
        with (
            self._spent(f"{name}: training"),
            bar("training", steps, quiet=self.quiet) as advance,
            recorder,
        ):
            for step, state in enumerate(islice(_states(setup), steps + 1)):
                recorder.record(step, *state)
                if step % every == 0:
                    advance(step)
                    if self.stop():
                        raise KeyboardInterrupt
        return open_run(path, setup)

    def analysed(self, run: Run, config: Any, name: str = "spectrum") -> Any:
        """The result of an analysis of a run, such as its spectrum, in a file beside the run's.

        One that is there is used if it is of the run as it is now, and of these settings.

        Args:
            run: to be analysed.
            config: settings of the analysis.
            name: of the analysis.

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
            study: its runs and measures.
            name: of the file.
            beside: folders next to this one; where one has the same study under this name, that is
                gone on with instead.

        Raises:
            FileError: when the file is of another study.
            KeyboardInterrupt: when it was stopped.
        """
        path = self._study_path(study, name, beside)
        if self.partial:
            if not path.exists():
                raise FileError(
                    f"{path} does not exist: nothing is finished; leave out --partial to compute it"
                )
            results = read_study(path)
            if results.study != study:
                raise FileError(f"{path} is of another study; name another folder with -o")
            return results
        with bar("runs", len(study), quiet=self.quiet) as advance:
            results = sweep(
                study,
                path,
                processes=self.processes,
                resume=not self.overwrite,
                overwrite=self.overwrite,
                progress=advance,
                stop=self.stop,
            )
        if not results.complete:
            raise KeyboardInterrupt
        return results

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
        """Something small that takes long, in NAME.json, found again if it is of the same.

        Args:
            name: of the file.
            of: what decides it, as JSON has it.
            compute: makes it, as JSON has it.

        Raises:
            KeyboardInterrupt: when it was stopped.
        """
        path = self.folder / f"{name}.json"
        if path.exists() and not self.overwrite:
            known = json.loads(path.read_text("utf-8"))
            if known["of"] == of:
                return known["value"]
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
        """The seeds; of a page that is to be partial, those with something kept as NAME-SEED.

        Raises:
            FileError: when there is none.
        """
        known = [seed for seed in seeds if not self.partial or self.has(f"{name}-{seed}")]
        if not known:
            raise FileError(
                f"{self.folder} has nothing that is finished; leave out --partial to compute it"
            )
        return known

    @contextmanager
    def _spent(self, part: str) -> Iterator[None]:
        """Adds the seconds within the block to those of this part, also when it is stopped."""
        start, path = time.monotonic(), self.folder / _SECONDS
        try:
            yield
        finally:
            known = _seconds_in(path)
            before = 0.0 if self.overwrite else known.get(part, 0.0)
            known[part] = before + time.monotonic() - start
            write_whole(path, json.dumps(known, indent=1).encode())

    def cost(self, *studies: StudyResults) -> str:
        """What it took: seconds of the runs of studies, and of what was computed beside them."""
        runs = sum(float(np.nansum(results.columns["seconds"])) for results in studies)
        parts = runs + sum(_seconds_in(self.folder / _SECONDS).values())
        if not parts:
            return "not measured"
        return f"{in_words(parts)} of wall time, runs one after the other, on the machine below"

    def drawn(self, figure: Figure, name: str) -> str:
        """Writes a figure; returns the name of the file.

        Raises:
            FileError: when it cannot be written.
        """
        (path,) = save(figure, self.folder / name, formats=("png",))
        return path.name

    def made(self, name: str, provenance: Mapping[str, Any], facts: Mapping[str, str]):
        """How a page was made: command and versions, and facts of the reproduction itself."""
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
            "cost": self.cost(),
            **facts,
            "machine": machine,
        }


@dataclass(frozen=True)
class Reproduction:
    """A published result that can be made again.

    Attributes:
        name: by which it is asked for.
        about: what it is, in a line.
        make: computes what is missing, draws, and compares.
        takes: how long that is at the budget `small`, in words.
        dtype: in which it computes.
        sweeps: whether it is a study, the runs of which are shared out over processes.
    """

    name: str
    about: str
    make: Callable[[Task], Page]
    takes: str
    dtype: Literal["float64", "float32"] = "float64"
    sweeps: bool = True


def counted(statuses: Sequence[str | None]) -> str:
    """The number of runs, and of those that diverged, failed or are not done.

    >>> counted(["complete", "complete", "diverged"])
    '3, 1 of which diverged'
    >>> counted(["complete", None])
    '2, 1 of which not done'
    """
    kinds = {"diverged": "diverged", "failed": "failed", None: "not done"}
    counts = {name: statuses.count(status) for status, name in kinds.items()}
    lost = [f"{count} of which {name}" for name, count in counts.items() if count]
    return ", ".join([str(len(statuses)), *lost])


def in_words(seconds: float) -> str:
    """A time as people say it.

    >>> in_words(40), in_words(600), in_words(9000)
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


def _of_another(path: Path) -> str:
    return (
        f"{path} is of another budget or version; write elsewhere with -o, or replace it with "
        "--overwrite"
    )


def _processor() -> str:
    """Name of the processor, where the system tells it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _seconds_in(path: Path) -> dict[str, float]:
    return json.loads(path.read_text()) if path.exists() else {}
