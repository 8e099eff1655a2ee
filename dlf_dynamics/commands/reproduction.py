"""`dlf-dynamics reproduce`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
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
      instability-onsets     how amplitude and period set the instabilities
      cascade                periods 2, 4, 8 and irregular in each burst, with exponents
      under-parameterised    who learns with few parameters, by width and learning rate
      over-parameterised     held-out accuracy of a wide network
      deeper-and-wider       Hessian of the static loss at the end and at equal loss
      width-learning-rate    loss and curvature by width, learning rate and loss
      stochastic-edge        where SGD leaves a minimum, by learning rate and batch size
      central-flow           the average over the oscillation, predicted for three runs
      cifar10-myrtle5        a sweep on CIFAR-10, its protocol inferred from a script; needs --data

    Without NAME it lists them with the time that each takes. Data, NAME.png and NAME.md, a page
    with the printed table, go to the folder reproduction/NAME. After Ctrl-C or a kill, the same
    command continues, and does not repeat finished computations.

      dlf-dynamics reproduce
      dlf-dynamics reproduce fig4
      dlf-dynamics reproduce spiral-phase-diagram --budget tiny -o try
    """

    name: tyro.conf.Positional[
        Literal[
            "fig4",
            "fig4-updated",
            "initialisation-table",
            "spiral-phase-diagram",
            "instability-onsets",
            "cascade",
            "under-parameterised",
            "over-parameterised",
            "deeper-and-wider",
            "width-learning-rate",
            "stochastic-edge",
            "central-flow",
            "cifar10-myrtle5",
        ]
        | None
    ] = None
    """What to reproduce; without it, the results are listed."""
    budget: Literal["tiny", "small", "full"] = "small"
    """How much to compute: `tiny` takes minutes and shows that it works; `small` takes from minutes
    to an hour or two on one core (cifar10-myrtle5: on a GPU); `full` needs a GPU or a cluster, for
    up to thousands of runs."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Folder to write to; none means reproduction/NAME."""
    pages: Path | None = None
    """Second folder for NAME.md and its figures, without the data."""
    data: Path | None = None
    """For cifar10-myrtle5: the folder with the binary version of CIFAR-10, or an .npz with images
    and labels."""
    processes: int = 0
    """Processes for a study, each with one thread; 0 chooses one per core."""
    overwrite: bool = False
    """Start anew instead of continuing."""
    partial: bool = False
    """Make the page from the existing runs of its studies, without computing more; the page says
    what is missing. A page of single runs needs all of them."""
    quiet: bool = False
    """No progress bar."""

    def execute(self) -> int:
        """Computes what is missing, writes, and prints the comparison; or lists what there is."""
        if self.name is None:
            return _list()
        folder = self.output or Path("reproduction") / self.name
        with _folders(folder, *([] if self.pages is None else [self.pages])):
            return self._execute(folder)

    def _execute(self, folder: Path) -> int:
        from dlf_dynamics.analysis.reproduction.catalogue import REPRODUCTIONS
        from dlf_dynamics.analysis.reproduction.task import Task
        from dlf_dynamics.resultfile import write_whole

        assert self.name is not None
        chosen = REPRODUCTIONS[self.name]
        start_jax(chosen.dtype, 1 if chosen.sweeps else 0, 0, many=not chosen.sweeps)
        shared = (self.budget, self.data, self.processes, self.overwrite, self.quiet)
        again = f"dlf-dynamics reproduce {self.name}"
        task = partial(Task, folder, *shared, partial=self.partial)
        page = interruptible(lambda stop: chosen.make(task(stop=stop)), again)
        if isinstance(page, int):
            return page
        file = f"{page.name}.md"
        write_whole(folder / file, page.to_markdown().encode())
        written = [file, *(picture.file for picture in page.pictures)]
        if self.pages is not None and self.pages.resolve() != folder.resolve():
            for name in written:
                shutil.copyfile(folder / name, self.pages / name)
        show(page.table())
        for written_to in dict.fromkeys([folder, self.pages or folder]):
            say("wrote " + ", ".join(str(written_to / name) for name in written))
        return 0


def _list() -> int:
    """Prints what can be reproduced, and how long it takes."""
    from rich import box
    from rich.table import Table

    from dlf_dynamics.analysis.reproduction.catalogue import REPRODUCTIONS

    table = Table(title="dlf-dynamics reproduce NAME", box=box.SIMPLE_HEAD)
    for heading in ("NAME", "what it is", "--budget small, on one core"):
        table.add_column(heading)
    for name, each in REPRODUCTIONS.items():
        table.add_row(name, each.about, each.takes)
    show(table)
    return 0


@contextmanager
def _folders(*paths: Path) -> Iterator[None]:
    """Makes folders, and removes those that are still empty after the block."""
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
