"""`Page`: results of a reproduction beside the published ones, as Markdown and as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from rich import box
from rich.table import Table

from dlf_dynamics.analysis.reproduction.published import KNOWN_BY, Numbers, Published
from dlf_dynamics.analysis.studies.studyfile import StudyResults

_NOT_REACHED = "not reached at this size"
"""Written in place of a number that a smaller budget does not reach."""

_UNKNOWN = "not known to us"
"""Written in place of a published number that we have not seen."""

_HEADINGS = ("what", "published", "measured here", "difference")


@dataclass(frozen=True)
class Comparison:
    """A row of the page: what was published, what was measured here, and the difference.

    Attributes:
        what: name of the quantity.
        published: number or statement, and how it is known; None where we have not seen it.
        measured: the same quantity here, in the same form.
        difference: measured minus published, with a remark.
    """

    what: str
    published: Published | None
    measured: str
    difference: str = ""

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """The texts of the columns, in their order."""
        published = _UNKNOWN if self.published is None else self.published.told
        return self.what, published, self.measured, self.difference


def compared(
    what: str, published: Published, measured: Numbers | None, note: str = ""
) -> Comparison:
    """A row of numbers, with their difference.

    Args:
        what: name of the quantity.
        published: published numbers.
        measured: as many numbers; None where a smaller budget does not reach them.
        note: remark on the difference.
    """
    if measured is None:
        return Comparison(what, published, _NOT_REACHED)
    difference = published.difference(measured) + (f" ({note})" if note else "")
    return Comparison(what, published, published.written(measured), difference)


@dataclass(frozen=True)
class Picture:
    """A figure of the page.

    Attributes:
        file: name of the file, in the folder of the page.
        caption: what it shows.
    """

    file: str
    caption: str


@dataclass(frozen=True)
class Page:
    """A reproduction on one page.

    Attributes:
        name: name of the reproduction; the page is `NAME.md`.
        title: heading of the page.
        source: the paper, with its number on arXiv.
        published: what the paper says, in Markdown.
        comparisons: rows of the table.
        differs: how the computation differs from the published one, a sentence for each way.
        pictures: the figures.
        made: how the page was made, as facts by their names.
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
        """The text of the page, whose figures are in the same folder."""
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
        """Explains the words behind the published numbers, those that occur."""
        known_by = {row.published.known_by for row in self.comparisons if row.published is not None}
        lines = [f"* *{word}*: {meaning}" for word, meaning in KNOWN_BY.items() if word in known_by]
        return ["How the published numbers are known:", "\n".join(lines)] if lines else []

    def table(self) -> Table:
        """The comparison for the terminal, without Markdown markup."""
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
    """A number with its error, both rounded to the same number of decimals.

    >>> with_error(0.4861, 0.0289)
    '0.486 ± 0.029'
    """
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def unfinished(complete: bool) -> tuple[str, ...]:
    """A warning for the page of a study that is not complete."""
    if complete:
        return ()
    return (
        "**The study is not finished.** What stands here is from the runs that are done, and says "
        "nothing of the others.",
    )


def titled(title: str, *studies: StudyResults) -> str:
    """The title, with the number of finished runs where not all are finished."""
    done, every = (sum(int(f(each.done)) for each in studies) for f in (np.sum, len))
    return title if done == every else f"{title}: unfinished, {done} of {every} runs"
