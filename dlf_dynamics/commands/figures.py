"""Options of figures, and the files that they are written to."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from dlf_dynamics.commands.terminal import Flattened, say
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.outputs import beside
from dlf_dynamics.paper import Paper

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FORMATS = ("png", "svg", "pdf")


def listed(names: tuple[str, ...]) -> list[str]:
    """Names given as separate words or separated by commas."""
    return [name for given in names for name in given.split(",") if name]


@dataclass(frozen=True)
class FigureFiles:
    """Names of the files of figures.

    Attributes:
        stem: start of the names; `run` gives run.png, run.density.png, ...
        formats: formats, with one file for each.
    """

    stem: Path
    formats: tuple[str, ...] = ("png", "svg")

    def write(self, figure: Figure, part: str = "") -> None:
        """Writes a figure in all formats and prints their names."""
        from dlf_dynamics.analysis.style import save

        stem = self.stem.with_name(f"{self.stem.name}.{part}") if part else self.stem
        say("wrote " + ", ".join(map(str, save(figure, stem, self.formats))))


@dataclass(frozen=True)
class FigureOptions:
    """The files of figures, and the page that they are drawn for."""

    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Name of the figures, in the format of its suffix: .png, .svg or .pdf; without a suffix in the
    formats of --format. None means the name of the run file."""
    format: tuple[str, ...] = ("png", "svg")
    """Formats of the figures: png, svg, pdf. Text in svg and pdf stays text."""
    paper: Annotated[Paper, Flattened] = field(default_factory=Paper)

    def files(self, path: Path) -> FigureFiles:
        """The files with the requested name and formats; by default beside the given file.

        Raises:
            ConfigError: when a format is unknown.
        """
        formats = tuple(dict.fromkeys(listed(self.format)))
        for name in formats:
            if name not in _FORMATS:
                raise ConfigError(f"format is {name!r}; choices: {', '.join(_FORMATS)}")
        if self.output is None:
            return FigureFiles(beside(path, ""), formats)
        if not self.output.suffix:
            return FigureFiles(beside(self.output, ""), formats)
        chosen = self.output.suffix[1:]
        if chosen not in _FORMATS:
            raise ConfigError(
                f"output is {self.output}; expected a name that ends in "
                f"{', '.join(f'.{name}' for name in _FORMATS)}, or has no suffix (png and svg)"
            )
        return FigureFiles(beside(self.output, ""), (chosen,))
