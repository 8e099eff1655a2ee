"""`Paper`: the format that figures are drawn for, such as a column of a paper.

Like matplotlib's settings, it applies to everything drawn within `with on_paper(paper):`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from dlf_dynamics.errors import ConfigError, shown

_INCHES = {"in": 1.0, "cm": 1 / 2.54, "mm": 1 / 25.4, "pt": 1 / 72.27}
"""A TeX point is 1/72.27 of an inch; so `\\the\\columnwidth` can be given as it is printed."""

_WIDTHS, _FONTS, _DOTS = (3.0, 40.0), (4.0, 20.0), (30, 2400)


@dataclass(frozen=True)
class Paper:
    """The width of figures, and the text around their panels."""

    width: str | None = None
    """Width of the figures, such as 3.4in, 86mm or 246pt for a column of a paper; none means the
    width on a screen. Letters keep their size, and panels that do not fit beside each other go
    below."""
    font_size: float = 8.0
    """Size of labels, in points; titles, legends and notes are in proportion."""
    dpi: int = 200
    """Pixels per inch of .png, and of curves with too many points for .svg and .pdf."""
    letters: bool = False
    """Letter the panels (a), (b), ..."""
    no_title: bool = False
    """Leave out the heading, if a caption says the same."""

    def __post_init__(self) -> None:
        inches = self.inches
        if inches is not None and not _WIDTHS[0] <= inches <= _WIDTHS[1]:
            raise ConfigError(
                f"width is {self.width}; expected {_WIDTHS[0]:g}in to {_WIDTHS[1]:g}in"
            )
        if not _FONTS[0] <= self.font_size <= _FONTS[1]:
            raise ConfigError(
                f"font_size is {self.font_size}; expected {_FONTS[0]:g} to {_FONTS[1]:g} points"
            )
        if not _DOTS[0] <= self.dpi <= _DOTS[1]:
            raise ConfigError(f"dpi is {self.dpi}; expected {_DOTS[0]} to {_DOTS[1]}")

    @property
    def inches(self) -> float | None:
        """The width in inches; None on a screen.

        Raises:
            ConfigError: when it is not a length.

        >>> Paper("8.6cm").inches.__round__(2)
        3.39
        """
        if self.width is None:
            return None
        match = re.fullmatch(r"([0-9]{1,5}(?:\.[0-9]{0,6})?) ?(in|cm|mm|pt)", self.width)
        if match is None:
            raise ConfigError(
                f"width is {shown(self.width)}; expected a length such as 3.4in, 86mm or 246pt"
            )
        return float(match[1]) * _INCHES[match[2]]

    def width_of(self, usual: float) -> float:
        """Width in inches of a figure that is `usual` inches wide on a screen."""
        return usual if self.inches is None else self.inches

    def columns(self, least: float, most: int) -> int:
        """Number of panels side by side, each at least `least` inches wide; `most` on a screen."""
        if self.inches is None:
            return most
        scale = self.font_size / 8  # larger letters leave less for the panels
        return max(1, min(most, int(self.inches / (least * scale))))


_PAPER: ContextVar[Paper] = ContextVar("paper", default=Paper())  # noqa: B039 - it is frozen


@contextmanager
def on_paper(paper: Paper) -> Iterator[Paper]:
    """Draws and saves the figures in the block for this paper."""
    token = _PAPER.set(paper)
    try:
        yield paper
    finally:
        _PAPER.reset(token)


def this_paper() -> Paper:
    """The paper of the current block; a screen if there is none."""
    return _PAPER.get()
