"""`Shown`: how results present themselves: summary, figures, HTML, labelled arrays, data frames.

The text and the figures of a kind of result are part of its analysis; its `Teller`, named in
`registry`, provides them.
"""

from __future__ import annotations

import html
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dlf_dynamics.console import rendered
from dlf_dynamics.errors import ConfigError, shown
from dlf_dynamics.labels import Group, groups_of
from dlf_dynamics.registry import FIGURES, teller_entry
from dlf_dynamics.reprs import outline
from dlf_dynamics.streams import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame
    from rich.table import Table
    from xarray import DataTree

    from dlf_dynamics.run import Run


class Teller(ABC):
    """Provides the text and figures of a kind of result."""

    @abstractmethod
    def lines(self, run: Run | None, result: Any, /) -> list[str | Table]:
        """The result as text; without the run, facts about the run are left out."""

    @abstractmethod
    def drawn(
        self, run: Run | None, result: Any, /, **options: Any
    ) -> Iterator[tuple[str, Figure]]:
        """Figures by name; the name of the main figure is empty.

        Raises:
            ConfigError: when the run is needed but not given, or an option is unknown.
        """

    def groups(self, result: Any, /) -> list[Group]:
        """The labelled arrays of a result."""
        return groups_of(result)

    def attributes(self, result: Any, /) -> dict[str, Any]:
        """The state of the run that the result belongs to, if it has one."""
        source = getattr(result, "source", None)
        return {} if source is None else {"run_id": source.run_id, **source.state}

    def frames(self, result: Any, /) -> dict[str, DataFrame]:
        """Tables of a result by name, the main table first."""
        from dlf_dynamics.frames import frames_of

        return frames_of(self.groups(result))


class Shown:
    """A result that presents itself; `told_by` names its teller in `registry`."""

    told_by = ""

    @property
    def _teller(self) -> Teller:
        return teller_entry(self.told_by).loaded()()

    def _outline(self) -> dict[str, str]:
        """Short texts of the fields, by name."""
        return outline(self)

    def summary(self, run: Run | None = None) -> str:
        """The text that the command prints.

        Args:
            run: run that the result belongs to; None leaves out facts that only the run has.

        Raises:
            StaleError: when the result belongs to another run, or another state of it.
        """
        self._require_own(run)
        return rendered(*self._teller.lines(run, self))

    def plot(self, run: Run | None = None, **options: Any) -> dict[str, Figure]:
        """The figures that the command draws, by name; a notebook shows them.

        Args:
            run: run that the result belongs to, for figures that also show the run.
            options: options of the figures, such as `zoom="8000:10500"` for a spectrum.

        Raises:
            ConfigError: when the run is needed but not given, or an option is unknown.
            StaleError: when the result belongs to another run, or another state of it.
        """
        self._require_own(run)
        drawn = self._teller.drawn(run, self, **options)
        return FIGURES.loaded()((name or self.told_by, figure) for name, figure in drawn)

    def to_xarray(self) -> DataTree:
        """All arrays as a tree, with named axes, coordinates, units and descriptions.

        Integers that stand for a missing value, such as -1 for a step, become NaN.

        Raises:
            ConfigError: when xarray is not installed (the extra `export`).
        """
        from dlf_dynamics.trees import tree_of

        return tree_of(self._teller.groups(self), self._attributes())

    def to_dataframe(self, table: str | None = None) -> DataFrame:
        """A table of the result, with a row for each position on its axes.

        Integers that stand for a missing value become `pandas.NA`. The run, the settings, and the
        units and descriptions of the columns are in the frame's `attrs`.

        Args:
            table: name of the table; None means the main table. An unknown name lists them all.

        Raises:
            ConfigError: when there is no such table, or pandas is not installed (the extra
                `export`).
        """
        from dlf_dynamics.trees import plain

        frames = self._teller.frames(self)
        name = next(iter(frames), "") if table is None else table
        if name not in frames:
            names = ", ".join(frames) or "none"
            raise ConfigError(f"table is {shown(name)}; expected one of {names}")
        frame = frames[name]
        whole = [group.settings for group in self._teller.groups(self) if not group.path]
        settings = {key: plain(value) for each in whole for key, value in each.items()}
        settings |= frame.attrs.get("settings", {})
        frame.attrs |= {"table": name, "settings": settings, **self._attributes()}
        return frame

    def _attributes(self) -> dict[str, Any]:
        from dlf_dynamics import __version__

        kind = {"result": self.told_by, "exported_by": f"dlf-dynamics {__version__}"}
        return kind | self._teller.attributes(self)

    def _require_own(self, run: Run | None) -> None:
        source = getattr(self, "source", None)
        if run is not None and run is not self and source is not None:
            source.require(run, f"this {self.told_by}", "give the run that it is of")

    def _repr_html_(self) -> str:
        """The summary, with the fields below it; all text is escaped."""
        fields = "".join(
            f"<tr><th style='text-align:left'>{_escaped(name)}</th>"
            f"<td style='text-align:left'>{_escaped(value)}</td></tr>"
            for name, value in self._outline().items()
        )
        return (
            f"<div><strong>{_escaped(type(self).__name__)}</strong>"
            f"<pre style='white-space:pre-wrap'>{html.escape(self.summary())}</pre>"
            f"<details><summary>fields</summary><table>{fields}</table></details></div>"
        )


def _escaped(text: str) -> str:
    return html.escape(printable(text))
