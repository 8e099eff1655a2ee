"""`Task`: where and how large a reproduction is made; runs and studies of it, found again if done.

Everything that takes long is kept in files of the folder. What is finished there is not computed
again, and what was interrupted goes on, so that a reproduction is continued by starting it again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from matplotlib.figure import Figure

from dlf_dynamics.analysis.pipeline import analysis_named
from dlf_dynamics.analysis.reproduction.page import Page
from dlf_dynamics.analysis.spectra.spectrum import Spectrum
from dlf_dynamics.analysis.studies.study import Study
from dlf_dynamics.analysis.studies.studyfile import StudyResults
from dlf_dynamics.analysis.studies.sweep import sweep
from dlf_dynamics.analysis.style import save
from dlf_dynamics.config import RunConfig, SpectrumConfig
from dlf_dynamics.errors import FileError, StaleError
from dlf_dynamics.opening import open_run
from dlf_dynamics.progress import bar
from dlf_dynamics.run import Run
from dlf_dynamics.training import resume, train

Budget = Literal["tiny", "small", "full"]
"""How much is computed: to try it out, within minutes, or as published."""


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
    """

    folder: Path
    budget: Budget = "small"
    data: Path | None = None
    processes: int = 0
    overwrite: bool = False
    quiet: bool = True
    stop: Callable[[], bool] = lambda: False

    def trained(self, config: RunConfig) -> Run:
        """The run of a configuration, in `run.h5`.

        Raises:
            FileError: when the file is of another configuration.
            KeyboardInterrupt: when it was stopped.
        """
        path = self.folder / "run.h5"
        with bar("training", config.steps, quiet=self.quiet) as advance:
            if self.overwrite or not path.exists():
                run = train(
                    config, path, overwrite=self.overwrite, progress=advance, stop=self.stop
                )
            else:
                if open_run(path).config != config:
                    raise FileError(
                        f"{path} is of another budget or version; write elsewhere with -o, or "
                        "replace it with --overwrite"
                    )
                run = resume(path, progress=advance, stop=self.stop)
        if run.status == "interrupted":
            raise KeyboardInterrupt
        return run

    def analysed(self, run: Run, config: SpectrumConfig) -> Spectrum:
        """The spectrum of a run, in `run.spectrum.h5`.

        One that is there is used if it is of the run as it is now, and of these settings.

        Raises:
            FileError: when another process writes it.
            KeyboardInterrupt: when it was stopped.
        """
        analysis = analysis_named("spectrum")
        path = analysis.path(run.path)
        if path.exists() and not self.overwrite:
            with suppress(StaleError):
                known = analysis.load(path, run)
                if known.asked == config:
                    return known
        return analysis.performed(
            run,
            config,
            path,
            resume=False if self.overwrite else None,
            quiet=self.quiet,
            stop=self.stop,
        )

    def swept(self, study: Study) -> StudyResults:
        """The outcomes of a study, in `study.h5`.

        Raises:
            FileError: when the file is of another study.
            KeyboardInterrupt: when it was stopped.
        """
        with bar("runs", len(study), quiet=self.quiet) as advance:
            results = sweep(
                study,
                self.folder / "study.h5",
                processes=self.processes,
                resume=not self.overwrite,
                overwrite=self.overwrite,
                progress=advance,
                stop=self.stop,
            )
        if not results.complete:
            raise KeyboardInterrupt
        return results

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
        command = " ".join([f"dlf-dynamics reproduce {name} --budget {self.budget}", *options])
        packages = provenance["packages"]
        versions = [f"dlf-dynamics {provenance['dlf_dynamics']}"]
        versions += [f"{package} {packages[package]}" for package in ("jax", "optax", "numpy")]
        return {"command": f"`{command}`", "versions": ", ".join(versions), **facts}


@dataclass(frozen=True)
class Reproduction:
    """A published result that can be made again.

    Attributes:
        name: by which it is asked for.
        about: what it is, in a line.
        make: computes what is missing, draws, and compares.
        dtype: in which it computes.
        sweeps: whether it is a study, the runs of which are shared out over processes.
    """

    name: str
    about: str
    make: Callable[[Task], Page]
    dtype: Literal["float64", "float32"] = "float64"
    sweeps: bool = True


def counted(statuses: Sequence[str | None]) -> str:
    """The number of runs, and of those that diverged or failed.

    >>> counted(["complete", "complete", "diverged"])
    '3, 1 of which diverged'
    """
    lost = [f"{statuses.count(name)} of which {name}" for name in ("diverged", "failed")]
    return ", ".join([str(len(statuses)), *(text for text in lost if text[0] != "0")])
