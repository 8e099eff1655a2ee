"""What a person reads, lines and tables, as a terminal shows it or as text."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from dlf_dynamics.streams import printable

if TYPE_CHECKING:
    from rich.table import Table

_COLUMNS = 100
"""Width of tables that become text."""


class _Console(Console):
    """A terminal that shows the text of files and users as it is, and does not obey it."""

    def render_str(self, text: str, **options: Any) -> Text:
        shown = "\n".join(map(printable, text.split("\n")))
        return super().render_str(shown, **options)


def show(*results: str | Table, **options: Any) -> None:
    """Prints results, each from a new line, on stdout or as the options of `rich` say."""
    console = _Console(markup=False, emoji=False, highlight=False, **options)
    for result in results:
        # A line is a line, also in a pipe; tables keep to the width.
        console.print(result, soft_wrap=isinstance(result, str))


def rendered(*results: str | Table) -> str:
    r"""Results as text of 100 columns, in which nothing is left that a terminal would obey.

    >>> rendered("sgd\x1b[2J", "0.1")
    'sgd\\x1b[2J\n0.1'
    """
    text = io.StringIO()
    # In a notebook it would go to the cell instead.
    plain: dict[str, Any] = {"color_system": None, "force_jupyter": False, "force_terminal": False}
    show(*results, file=text, width=_COLUMNS, **plain)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())
