"""`dlf-dynamics reproduce`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from dlf_dynamics.commands.terminal import interruptible, say, show
from dlf_dynamics.errors import FileError
from dlf_dynamics.startup import start_jax


@dataclass(frozen=True)
class Reproduce:
    """Make a published result again, and compare what comes out with what was published.

    The results are, by NAME:

      fig4                   the headline run and its spectra
      fig4-updated           the same with the initial values of July 2022
      initialisation-table   who learns the spiral: 2 initialisations, A = 1 and 70, 10 seeds
      spiral-phase-diagram   accuracies on the spiral by amplitude and period
      width-learning-rate    loss and curvature by width, learning rate and loss
      cifar10-myrtle5        a sweep on CIFAR-10, its protocol inferred from a script; needs --data

    Data, NAME.png and NAME.md, a page with the table that is printed, go to the folder
    reproduction/NAME. Ctrl-C ends it, and so may a kill: the same command goes on, and computes
    nothing that is finished.

      dlf-dynamics reproduce fig4
      dlf-dynamics reproduce spiral-phase-diagram --budget tiny -o try
    """

    name: tyro.conf.Positional[
        Literal[
            "fig4",
            "fig4-updated",
            "initialisation-table",
            "spiral-phase-diagram",
            "width-learning-rate",
            "cifar10-myrtle5",
        ]
    ]
    """What to reproduce."""
    budget: Literal["tiny", "small", "full"] = "small"
    """How much to compute: `tiny` takes about a minute and shows that it works; `small` takes
    minutes on two cores (cifar10-myrtle5: on a GPU); `full` is all of it, which for
    spiral-phase-diagram and cifar10-myrtle5 are thousands of runs."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Folder to write to; none means reproduction/NAME."""
    pages: Path | None = None
    """Folder to which NAME.md and its figures are written as well, without the data."""
    data: Path | None = None
    """For cifar10-myrtle5: the folder with the binary version of CIFAR-10, or an .npz with images
    and labels."""
    processes: int = 0
    """Processes for a study, each with one thread; 0 chooses one per core."""
    overwrite: bool = False
    """Start anew instead of going on."""
    quiet: bool = False
    """No progress bar."""

    def execute(self) -> int:
        """Computes what is missing, writes, and prints the comparison."""
        folder = self.output or Path("reproduction") / self.name
        with _folders(folder, *([] if self.pages is None else [self.pages])):
            return self._execute(folder)

    def _execute(self, folder: Path) -> int:
        from dlf_dynamics.analysis.reproduction.catalogue import REPRODUCTIONS
        from dlf_dynamics.analysis.reproduction.task import Task
        from dlf_dynamics.resultfile import write_whole

        chosen = REPRODUCTIONS[self.name]
        start_jax(chosen.dtype, 1 if chosen.sweeps else 0, 0, many=not chosen.sweeps)
        shared = (self.budget, self.data, self.processes, self.overwrite, self.quiet)
        again = f"dlf-dynamics reproduce {self.name}"
        page = interruptible(lambda stop: chosen.make(Task(folder, *shared, stop)), again)
        if isinstance(page, int):
            return page
        file = f"{page.name}.md"
        write_whole(folder / file, page.to_markdown().encode())
        written = [file, *(picture.file for picture in page.pictures)]
        if self.pages is not None and self.pages.resolve() != folder.resolve():
            for name in written:
                shutil.copyfile(folder / name, self.pages / name)
        show(page.table())
        for place in dict.fromkeys([folder, self.pages or folder]):
            say("wrote " + ", ".join(str(place / name) for name in written))
        return 0


@contextmanager
def _folders(*paths: Path) -> Iterator[None]:
    """Makes folders; those into which nothing was written are taken away again."""
    missing = [each for path in paths for each in (path, *path.parents) if not each.exists()]
    try:
        for path in paths:
            _make_folder(path)
        yield
    finally:
        for path in missing:
            with suppress(OSError):  # it is not empty
                path.rmdir()


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(
            f"folder {path} cannot be made ({error.strerror}); name another one"
        ) from error
