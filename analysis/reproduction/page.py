"""`Page`: what a reproduction found, beside what was published, as Markdown and as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rich import box
from rich.table import Table

from dlf_dynamics.analysis.reproduction.published import KNOWN_BY, Numbers, Published

NOT_REACHED = "not reached at this size"
"""What stands for a number that a smaller budget does not come to."""

_UNKNOWN = "not known to us"
"""What stands for a published number that we have not seen."""

_HEADINGS = ("what", "published", "measured here", "difference")


@dataclass(frozen=True)
class Comparison:
    """A row of the page: what was published, what came out here, and how far they are apart.

    Attributes:
        what: was measured.
        published: number or statement, and how it is known; None where we have not seen it.
        measured: in the same form.
        difference: measured minus published, and what is to be said about it.
    """

    what: str
    published: Published | None
    measured: str
    difference: str = ""

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """In the order of the columns."""
        published = _UNKNOWN if self.published is None else self.published.told
        return self.what, published, self.measured, self.difference


def compared(
    what: str, published: Published, measured: Numbers | None, note: str = ""
) -> Comparison:
    """A row of numbers, with their difference.

    Args:
        what: was measured.
        published: numbers.
        measured: as many; None where a smaller budget does not come to them.
        note: on the difference.
    """
    if measured is None:
        return Comparison(what, published, NOT_REACHED)
    difference = published.difference(measured) + (f" ({note})" if note else "")
    return Comparison(what, published, published.written(measured), difference)


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
        published: what the paper says, in Markdown.
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
            *self._explained(),
            *(f"![{picture.caption}]({picture.file})" for picture in self.pictures),
            "## What differs",
            "\n".join(f"* {sentence}" for sentence in self.differs),
            "## How it was made",
            "\n".join(map(_line, [("", ""), ("---", "---"), *self.made.items()])),
        ]
        return "\n\n".join(parts) + "\n"

    def _explained(self) -> list[str]:
        """What the words behind the published numbers mean, of those that occur."""
        known_by = {row.published.known_by for row in self.comparisons if row.published is not None}
        lines = [f"* *{word}*: {meaning}" for word, meaning in KNOWN_BY.items() if word in known_by]
        return ["How the published numbers are known:", "\n".join(lines)] if lines else []

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
