"""`Page`: what a reproduction found, beside what was published, as Markdown and as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rich import box
from rich.table import Table

NOT_REACHED = "not reached at this size"
"""What stands for a number that a smaller budget does not come to."""

_HEADINGS = ("what", "reference", "measured here", "remark")


@dataclass(frozen=True)
class Comparison:
    """One number or statement to compare with, and what came out here.

    Attributes:
        what: was measured.
        reference: what was published or, where the page says so, found otherwise; with its error,
            where there is one.
        measured: in the same form.
        remark: whether they agree, and within what.
    """

    what: str
    reference: str
    measured: str
    remark: str = ""

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """In the order of the columns."""
        return self.what, self.reference, self.measured, self.remark


@dataclass(frozen=True)
class Picture:
    """A figure of the page.

    Attributes:
        file: its name, in the folder of the page.
        caption: what is seen.
    """

    file: str
    caption: str


@dataclass(frozen=True)
class Page:
    """A reproduction on one page.

    Attributes:
        name: of the reproduction; the page is `NAME.md`.
        title: heading of the page.
        source: the paper, with its number on arXiv.
        published: what the paper says, and where the reference numbers come from, in Markdown.
        comparisons: rows of the table.
        differs: in which ways the computation is not the published one, a sentence each.
        pictures: the figures.
        made: how it was made: facts by their name, none of which depends on the machine.
    """

    name: str
    title: str
    source: str
    published: str
    comparisons: tuple[Comparison, ...]
    differs: tuple[str, ...]
    pictures: tuple[Picture, ...]
    made: Mapping[str, str] = field(default_factory=dict)

    def to_markdown(self) -> str:
        """The page, which stands beside its figures."""
        rows = [comparison.cells for comparison in self.comparisons]
        parts = [
            f"# {self.title}",
            self.source,
            "## What was published",
            self.published,
            "## Comparison",
            "\n".join(map(_line, [_HEADINGS, ("---",) * len(_HEADINGS), *rows])),
            *(f"![{picture.caption}]({picture.file})" for picture in self.pictures),
            "## What differs",
            "\n".join(f"* {sentence}" for sentence in self.differs),
            "## How it was made",
            "\n".join(map(_line, [("", ""), ("---", "---"), *self.made.items()])),
        ]
        return "\n\n".join(parts) + "\n"

    def table(self) -> Table:
        """The comparison for the terminal, without the marks of Markdown."""
        table = Table(title=self.title, box=box.SIMPLE_HEAD)
        for heading in _HEADINGS:
            table.add_column(heading)
        for comparison in self.comparisons:
            table.add_row(*(cell.replace("`", "") for cell in comparison.cells))
        return table


def _line(cells: tuple[str, ...]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def with_error(value: float, error: float, digits: int = 3) -> str:
    """A number with its error, both to so many decimals.

    >>> with_error(0.4861, 0.0289)
    '0.486 ± 0.029'
    """
    return f"{value:.{digits}f} ± {error:.{digits}f}"
