"""Shows lines and tables on a terminal, or renders them as text."""

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
    """A terminal that shows control characters in foreign texts instead of obeying them."""

    def render_str(self, text: str, **options: Any) -> Text:
        shown = "\n".join(map(printable, text.split("\n")))
        return super().render_str(shown, **options)


def show(*results: str | Table, **options: Any) -> None:
    """Prints results, each on a new line, to stdout or as the options of `rich` say."""
    console = _Console(markup=False, emoji=False, highlight=False, **options)
    for result in results:
        # Lines are not wrapped, also in a pipe; tables keep to the width.
        console.print(result, soft_wrap=isinstance(result, str))


def rendered(*results: str | Table) -> str:
    r"""Results as text of 100 columns, without characters that a terminal would obey.

    >>> rendered("sgd\x1b[2J", "0.1")
    'sgd\\x1b[2J\n0.1'
    """
    text = io.StringIO()
    # By default rich would print to the cell of a notebook.
    plain: dict[str, Any] = {"color_system": None, "force_jupyter": False, "force_terminal": False}
    show(*results, file=text, width=_COLUMNS, **plain)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())
