"""What all analyses of a run share: their parts, locks, result files, figures and words.

An analysis is a subclass of `Analysis` and a line in `registry`. Its command, `--resume`, `--json`,
result file, `plot`, `info`, `validate` and documentation follow from these. What a command needs
for its help stands in the class, and nothing there imports JAX, so that the command line answers at
once; `Analysis.implementation`, `figures` and `report` import what they need when they are called.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from dlf_dynamics import resultfile
from dlf_dynamics.errors import ConfigError, StaleError, shown
from dlf_dynamics.jsontypes import document
from dlf_dynamics.outputs import beside, hold
from dlf_dynamics.parts import Parts
from dlf_dynamics.progress import Advance, bar
from dlf_dynamics.registry import ANALYSES
from dlf_dynamics.shown import Teller
from dlf_dynamics.startup import leads, wait_for_others
from dlf_dynamics.streams import say

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

    from dlf_dynamics.analysis.report.content import Part
    from dlf_dynamics.run import Run

Config = TypeVar("Config")
Found = TypeVar("Found")
Given = TypeVar("Given", contravariant=True)
Computed = TypeVar("Computed", covariant=True)


@dataclass(frozen=True)
class View:
    """Options of a command that change text and figures, and nothing that is computed."""


@dataclass(frozen=True)
class Work:
    """What a computation is given to keep its parts and to tell how far it is.

    Attributes:
        parts: where finished parts are kept, so that an interrupted analysis goes on.
        progress: told how many units of `Implementation.total` are done, and what to write beside
            the progress bar; it raises KeyboardInterrupt when the work is to stop.
    """

    parts: Parts
    progress: Advance


class _Computing(Protocol[Given, Computed]):
    """A function that computes a result."""

    def __call__(self, run: Run, config: Given, *, parts: Parts, progress: Advance) -> Computed:
        """Computes it, as `Work` says."""
        ...


class _Summary(Protocol[Given]):
    """A module that puts a result into words."""

    def lines(self, found: Given, /) -> Sequence[str | Table]:
        """Text and tables for a person to read."""
        ...

    def as_dict(self, found: Given, /) -> dict[str, Any]:
        """The same for a program, JSON-ready."""
        ...


@dataclass(frozen=True)
class Implementation(Generic[Config, Found]):
    """The types, functions and modules of an analysis.

    Attributes:
        result: dataclass of the result, as the codec stores it; it has a field `source`.
        compute: computes the result.
        total: number of units of the progress bar; raises ConfigError where the run holds nothing
            that could be analysed.
        summary: the result in words.
        json_type: TypedDict of `as_dict`, whose docstring describes the keys.
    """

    result: type[Found]
    compute: _Computing[Config, Found]
    total: Callable[[Run, Config], int]
    summary: _Summary[Found]
    json_type: type


class Analysis(Teller, ABC, Generic[Config, Found]):
    """An analysis of a run: what it computes, and how that is shown.

    The docstring of a subclass is the help of its command.

    Attributes:
        name: name of the command; the result of `run.h5` is `run.NAME.h5`.
        config: dataclass of its settings; their docstrings are the help of the options.
        view: dataclass of the other options of its command.
        distributed: whether several processes can compute it together.
        follows: whether it can be computed repeatedly for a run that is still being written.
        needs_run: whether its figures show the run, too.
    """

    name: ClassVar[str]
    config: ClassVar[type]
    view: ClassVar[type] = View
    distributed: ClassVar[bool] = False
    follows: ClassVar[bool] = False
    needs_run: ClassVar[bool] = True

    @abstractmethod
    def implementation(self) -> Implementation[Config, Found]:
        """Imports the modules that do the work, and names their types and functions."""

    def compute(self, run: Run, config: Config, work: Work) -> Found:
        """Computes the result, all finished parts being kept."""
        compute = self.implementation().compute
        return compute(run, config, parts=work.parts, progress=work.progress)

    def lines(self, run: Run | None, found: Found) -> list[str | Table]:
        """Text and tables for a person to read; without the run, what only it shows is missing."""
        return list(self.implementation().summary.lines(found))

    def as_dict(self, found: Found) -> dict[str, Any]:
        """The result for a program to read, JSON-ready."""
        return self.implementation().summary.as_dict(found)

    def now(self, found: Found) -> str:
        """How the run stands, in a few words, for those who follow it."""
        return f"{self.name} computed"

    def schema(self) -> dict[str, Any]:
        """JSON schema of what `--json` prints."""
        return document(self.implementation().json_type, f"dlf-dynamics {self.name} --json")

    def figures(self, run: Run, found: Found, view: Any) -> Iterator[tuple[str, Figure]]:
        """Names and figures; `run.NAME.png` is drawn of `run.h5`, or `run.png` without a name."""
        yield from ()

    def drawn(self, run: Run | None, found: Found, **options: Any) -> Iterator[tuple[str, Figure]]:
        """The figures, options being those of the view.

        Raises:
            ConfigError: when the run is needed and not given, or there are no such options.
        """
        known = [field.name for field in dataclasses.fields(self.view)]
        for name in options:
            if name not in known:
                told = ", ".join(known) or "none"
                raise ConfigError(f"option {shown(name)} is not known; expected one of {told}")
        if run is None and self.needs_run:
            raise ConfigError(
                f"the figures of {self.name} show the run, too; expected plot(open_run(path))"
            )
        yield from self.figures(run, found, self.view(**options))  # type: ignore[arg-type]

    def without(self, run: Run, view: Any) -> Iterator[tuple[str, Figure]]:
        """What `plot` draws where there is no result, as `figures`."""
        yield from ()

    def report(self, run: Run, found: Found) -> Part:
        """What the report of the run shows of it: by default what a person reads."""
        from dlf_dynamics.analysis.report.content import told

        return told(self.name, self.lines(run, found))

    def verify(self, run: Run, found: Found, view: Any, *, quiet: bool) -> list[str]:
        """What is done after all else because an option of the view asks for it, in words."""
        return []

    def path(self, run_path: Path) -> Path:
        """Where the result of a run file lies, if nothing else is said."""
        return beside(run_path, f".{self.name}.h5")

    def joined(self, before: Callable[[], Found | None], found: Found) -> Found:
        """What is written of what was found, beside what is on file; by default this alone.

        Args:
            before: reads the result on file of the run as it is now, if there is one.
            found: what was found now.
        """
        return found

    def save(self, found: Found, path: Path) -> None:
        """Writes the result file; see `resultfile.save`."""
        resultfile.save(path, self.name, found)

    def load(self, path: str | Path, run: Run | None = None) -> Found:
        """Reads a result file; see `resultfile.load`."""
        return resultfile.load(path, self.name, self.implementation().result, run)

    def known(self, path: Path, run: Run) -> Found | None:
        """The result on file, of the run as it is now; none without it, once that was said."""
        try:
            return self.load(path, run) if path.exists() else None
        except StaleError as error:
            say(f"{error.found}; computing anew")
            return None

    def performed(
        self,
        run: Run,
        config: Config,
        output: Path,
        *,
        resume: bool | None = None,
        quiet: bool = True,
        stop: Callable[[], bool] = lambda: False,
        work: Callable[[Work], Found] | None = None,
        total: int | None = None,
    ) -> Found:
        """What is computed, its parts being kept and the result written.

        Args:
            run: the run that is analysed.
            config: settings of the analysis.
            output: the result file.
            resume: whether to go on from parts that are there; none does so, and says nothing,
                where they are of this run as it is now, and of these settings.
            quiet: whether to show no progress.
            stop: whether to stop, asked after each part.
            work: what to do instead of `compute`, such as to complete a result.
            total: units of the progress bar of that work.

        Raises:
            FileError: when the result cannot be written, or another process writes it.
            KeyboardInterrupt: when it was stopped.
        """
        settings = dataclasses.asdict(config)  # type: ignore[call-overload]
        count = self.implementation().total(run, config) if total is None else total
        with _kept_parts(output, self.name, run, settings, resume=resume) as parts:
            with bar(self.name, count, quiet=quiet or not leads()) as advance:

                def told(done: int) -> None:
                    advance(done)
                    if stop():
                        raise KeyboardInterrupt

                given = Work(parts, Advance(told, advance.note))
                found = self.compute(run, config, given) if work is None else work(given)
            if leads():
                self.save(self.joined(lambda: self.known(output, run), found), output)
                parts.clear()
        return found


@contextmanager
def _kept_parts(
    output: Path, analysis: str, run: Run, settings: Any, *, resume: bool | None
) -> Iterator[Parts]:
    """The finished parts of an analysis, in a folder beside its output; see `performed`.

    Output and parts are this process's to write while the block lasts.
    """
    folder = beside(output, ".parts")
    if not leads():
        wait_for_others("parts are cleared")
        parts = Parts(folder, analysis, run, settings, kept=False)
        wait_for_others("parts are known")
        yield parts
        return
    with hold(output), hold(folder):  # outputs that differ in their suffix share the folder
        resultfile.require_result(output, analysis, run)
        parts = Parts(folder, analysis, run, settings)
        if not _usable(parts, folder, resume):
            parts.clear()
        wait_for_others("parts are cleared")
        wait_for_others("parts are known")
        yield parts


def _usable(parts: Parts, folder: Path, resume: bool | None) -> bool:
    """Whether to resume from the parts that are there; says why not, if that was requested."""
    if resume is None:
        return parts.outdated() is None and not parts.of_other_settings()
    if not resume:
        return False
    outdated = parts.outdated()
    if outdated is not None:
        say(f"{outdated}; starting anew")
    elif not folder.is_dir():
        say(f"nothing to resume in {folder}; starting anew")
    return outdated is None


def analysis_named(name: str) -> Analysis[Any, Any]:
    """An analysis of the registry."""
    return ANALYSES[name].loaded()()
