"""Which figures a command draws, and into which files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dlf_dynamics.commands.terminal import say
from dlf_dynamics.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FORMATS = ("png", "svg", "pdf")


@dataclass(frozen=True)
class FigureFiles:
    """Names of figures.

    Attributes:
        stem: `run` makes run.png, run.density.png, ...
        formats: one file for each.
    """

    stem: Path
    formats: tuple[str, ...] = ("png", "svg")

    def write(self, figure: Figure, part: str = "") -> None:
        """Writes a figure in all formats, and says so."""
        from dlf_dynamics.analysis.style import save

        stem = self.stem.with_name(f"{self.stem.name}.{part}") if part else self.stem
        say("wrote " + ", ".join(map(str, save(figure, stem, self.formats))))


def figure_files(output: Path | None, path: Path) -> FigureFiles:
    """Those named by `-o`, of the format of its suffix; without one, those beside a file.

    Raises:
        ConfigError: when the suffix is not that of a format.
    """
    if output is None:
        return FigureFiles(path.with_suffix(""))
    if not output.suffix:
        return FigureFiles(output)
    chosen = output.suffix[1:]
    if chosen not in _FORMATS:
        raise ConfigError(
            f"output is {output}; expected a name that ends in "
            f"{', '.join(f'.{name}' for name in _FORMATS)}, or has no suffix (png and svg)"
        )
    return FigureFiles(output.with_suffix(""), (chosen,))
