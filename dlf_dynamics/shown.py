"""`Shown`: how results show themselves: summary, figures, HTML, labelled arrays, data frames.

What is told and drawn of a kind of result, its `Teller` knows, which `registry` names: figures and
words are part of the analysis.
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
    """What is told and drawn of a kind of result."""

    @abstractmethod
    def lines(self, run: Run | None, found: Any) -> list[str | Table]:
        """What a person reads; without the run, what is to be told of that is left out."""

    @abstractmethod
    def drawn(self, run: Run | None, found: Any, **options: Any) -> Iterator[tuple[str, Figure]]:
        """Figures by name, of which the main one has none.

        Raises:
            ConfigError: when the run is needed and not given, or there are no such options.
        """

    def groups(self, found: Any) -> list[Group]:
        """The labelled arrays of a result."""
        return groups_of(found)

    def attributes(self, found: Any) -> dict[str, Any]:
        """What the result is of: the state of its run, where it has one."""
        source = getattr(found, "source", None)
        return {} if source is None else {"run_id": source.run_id, **source.state}

    def frames(self, found: Any) -> dict[str, DataFrame]:
        """Tables of a result by name, the main one first."""
        from dlf_dynamics.frames import frames_of

        return frames_of(self.groups(found))


class Shown:
    """A result that shows itself. A class says by `told_by` who tells of it: see `registry`."""

    told_by = ""

    @property
    def _teller(self) -> Teller:
        return teller_entry(self.told_by).loaded()()

    def _outline(self) -> dict[str, str]:
        """Fields in short, by name."""
        return outline(self)

    def summary(self, run: Run | None = None) -> str:
        """What the command prints of it, as text.

        Args:
            run: that it is of; none leaves out what only the run tells.

        Raises:
            StaleError: when it is of another run, or another state of it.
        """
        self._require_own(run)
        return rendered(*self._teller.lines(run, self))

    def plot(self, run: Run | None = None, **options: Any) -> dict[str, Figure]:
        """The figures that the command draws, by name; a notebook shows them.

        Args:
            run: that it is of, where figures show it, too.
            options: those of the figures, such as `zoom="8000:10500"` of a spectrum.

        Raises:
            ConfigError: when the run is needed and not given, or there are no such options.
            StaleError: when it is of another run, or another state of it.
        """
        self._require_own(run)
        drawn = self._teller.drawn(run, self, **options)
        return FIGURES.loaded()((name or self.told_by, figure) for name, figure in drawn)

    def to_xarray(self) -> DataTree:
        """All arrays with names of axes, their places, units and descriptions, as a tree.

        Whole numbers that stand for none, such as -1 for a step, are NaN.

        Raises:
            ConfigError: when xarray is not installed (the extra `export`).
        """
        from dlf_dynamics.trees import tree_of

        return tree_of(self._teller.groups(self), self._attributes())

    def to_dataframe(self, table: str | None = None) -> DataFrame:
        """A table of it, a row for each place on its axes.

        Whole numbers that stand for none are missing (`pandas.NA`). What it is of, with which
        settings, and the units and descriptions of its columns are in the frame's `attrs`.

        Args:
            table: which one; none means the main one. An unknown name lists them all.

        Raises:
            ConfigError: when there is no such table, or pandas is not installed (the extra
                `export`).
        """
        from dlf_dynamics.trees import plain

        found = self._teller.frames(self)
        name = next(iter(found), "") if table is None else table
        if name not in found:
            names = ", ".join(found) or "none"
            raise ConfigError(f"table is {shown(name)}; expected one of {names}")
        frame = found[name]
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
        """The summary, with the fields below it; nothing in it is taken for markup."""
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
